/**
 * Serves a folder on the FUSE connection at descriptor 3, as a process of its own.
 *
 * Arguments: the folder, and what an earlier process has negotiated or `null`, as JSON. Messages to
 * the parent: what was negotiated, once it serves; `unmounted`.
 */
import { FuseSession, type Negotiated } from '../../src/fuse/index.js'
import { FolderFileSystem } from './folder-file-system.js'

const [folder, before] = process.argv.slice(2) as [string, string]
const negotiated = JSON.parse(before) as Negotiated | null
const session = new FuseSession({
  fd: 3,
  fileSystem: new FolderFileSystem(folder),
  ...(negotiated ? { negotiated } : {}),
  onInitialized: agreed => process.send?.(agreed),
  onUnmounted: () => process.send?.('unmounted', () => process.exit(0)),
  onFatal: err => {
    console.error(err)
    process.exit(1)
  },
})
if (negotiated) {
  session.resend()
  process.send?.(negotiated)
}
process.on('disconnect', () => process.exit(1))
