// Goal: through fuse-native and libfuse 2 a volume is what it is through /dev/fuse, discards among it, and
// what cannot be the same is said. Method: the suite of all transports; programs and checkers of others.
import { statSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { FUSE_NATIVE } from '../../src/fuse/index.js'
import { transportContract } from '../contract/transport.js'
import { MountedPool, needs, run, sh, thinfs, until } from '../support/mounted-pool.js'

const MIB = 1024 * 1024
const onMount = needs('/dev/fuse')
const onLoop = needs('/dev/fuse', '/dev/loop-control')

transportContract(FUSE_NATIVE, onMount)

async function nativePool(t: Test, yaml: string): Promise<MountedPool> {
  const pool = await MountedPool.make(t, `transport: fuse-native\n${yaml}`)
  t.match((await pool.status()).mount, { transport: 'fuse-native', whyDev: null })
  return pool
}

t.test('a loop device with ext4: what is trimmed goes back to the host', onLoop, async t => {
  const pool = await nativePool(t, 'data: { size: 256M }\nvolumes: { disk: { size: 512M } }')
  t.match(await thinfs('status', pool.folder), /^transport +fuse-native$/m)
  const device = await pool.attach('disk')
  await sh(pool.base, `mkfs.ext4 -q ${device}; mkdir ext4; mount ${device} ext4`)
  const at = join(pool.base, 'ext4')
  await sh(at, 'head -c 8M /dev/urandom > kept; head -c 64M /dev/urandom > dropped; sync -f .')
  const full = statSync(pool.data).blocks * 512
  const sums = await sh(at, 'sha256sum kept')
  await sh(at, 'rm dropped; sync -f .; fstrim .')
  await pool.sh('sync disk')
  await until(() => statSync(pool.data).blocks * 512 <= full - 60 * MIB)

  await thinfs('snapshot', pool.folder, 'disk', 'before')
  await sh(at, 'head -c 4M /dev/urandom > kept; sync -f .')
  await run('umount', at)
  await sh('/', `e2fsck -fn ${device} > /dev/null`)
  await pool.detach('disk')
  const before = await pool.attach('before')
  await sh(pool.base, `e2fsck -fy ${before} > /dev/null || test $? -eq 1; mount ${before} ext4`)
  t.equal(await sh(at, 'sha256sum kept'), sums, 'the snapshot is as it was')
  await run('umount', at)
  await pool.detach('before')
  await pool.close(t)
})
