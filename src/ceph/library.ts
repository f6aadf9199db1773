import { ThinfsError } from '../base/index.js'
import { native } from '../native.js'

/** The libraries by their names, and the packages that have them. */
const LIBRADOS = 'librados.so.2'
const LIBRBD = 'librbd.so.1'

/** Opens Ceph's libraries, once. @throws NOT_SUPPORTED with the package's name */
export function mustHaveCeph(librados = LIBRADOS, librbd = LIBRBD): void {
  const why = native.rbd_load(librados, librbd)
  if (why === '') return
  const how = 'it comes with librbd, which this needs: apt install librbd1, or dnf install librbd1'
  throw new ThinfsError('NOT_SUPPORTED', `Ceph's library cannot be used: ${why}: ${how}`)
}
