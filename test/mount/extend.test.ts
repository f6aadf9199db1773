// Goal: a pool that is full to its last block of data, or of metadata, is dug out by `thinfs extend`:
// who waits goes on, whatever is killed meanwhile. Method: pools of a few MiB, filled through the mount;
// dd and cmp judge, and thin_check at the end.
import { readFileSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { connectDaemon } from '../../src/control/index.js'
import { fill } from '../support/full-pool.js'
import {
  attempt,
  attemptThinfs,
  MountedPool,
  needs,
  sh,
  thinfs,
  until,
} from '../support/mounted-pool.js'

const onMount = needs('/dev/fuse')

t.test('data: writes that wait go on, though the engine is killed meanwhile', onMount, async t => {
  const pool = await MountedPool.make(
    t,
    'data: { size: 16M } # small\nvolumes: { a: { size: 64M }, fill: { size: 1G } }\non_full: queue',
  )
  await fill(pool)
  await sh(pool.plain, 'head -c 12M /dev/urandom > random')
  const copy = attempt(
    'dd',
    `if=${join(pool.plain, 'random')}`,
    `of=${join(pool.path, 'a')}`,
    'bs=1M',
    'conv=notrunc,fsync',
  )
  await until(async () => (await pool.status()).writesWaiting > 0)
  await thinfs('extend', pool.folder, '--data', '+4M')
  t.equal((await pool.status()).data.blocks, 320)
  await until(async () => (await pool.status()).writesWaiting > 0)
  const pid = await pool.enginePid()
  const extended = attemptThinfs('extend', pool.folder, '--data', '64M')
  process.kill(pid, 'SIGKILL')
  t.match(await extended, { status: 0, stderr: '' })
  t.equal((await copy).status, 0)
  await pool.sh('cmp -n 12582912 ../plain/random a')
  const { mode, data } = await pool.status()
  t.same([mode, data.blocks], ['write', 1024])
  t.match(readFileSync(join(pool.folder, 'pool.yaml'), 'utf8'), 'data: { size: 64M } # small\n')
  await pool.close(t)
})

t.test('metadata: to its last block, and both at once', onMount, async t => {
  const pool = await MountedPool.make(
    t,
    'data: { size: 256M }\nmetadata: { size: 2M }\nvolumes: { a: { size: 1G } }\non_full: error',
  )
  const daemon = (await connectDaemon({ file: '', folder: pool.folder }))!
  t.teardown(() => daemon.close())
  const file = await open(join(pool.path, 'a'), 'r+')
  t.teardown(() => file.close())
  const write = async (block: number): Promise<void> => {
    await file.write(Buffer.alloc(4096, block % 251), 0, 4096, block * 65536)
  }
  for (let block = 0; block < 100; block++) await write(block)
  const isFull = (err: NodeJS.ErrnoException): true => {
    t.match(err, { code: /^(ENOSPC|NO_METADATA_SPACE)$/ })
    return true
  }
  let full = false
  for (let i = 0; !full; i++) {
    await daemon.snapshot({ origin: 'a', name: `s${i}` }).catch(isFull)
    // A block of its own, and the path to it: a commit may give back what the last write has copied.
    full = await write(i % 100).then(() => false, isFull)
  }
  t.equal((await pool.status()).mode, 'out_of_metadata_space')
  await thinfs('extend', pool.folder, '--metadata', '+2M', '--data', '1G')
  t.match(await pool.status(), {
    mode: 'write',
    metadata: { blocks: 1024 },
    data: { blocks: 16384 },
  })
  await write(500)
  await daemon.snapshot({ origin: 'a', name: 'after' })
  await file.sync()
  t.match(
    readFileSync(join(pool.folder, 'pool.yaml'), 'utf8'),
    'data: { size: 1G }\nmetadata: { size: 4M }\n',
  )
  await file.close()
  await pool.close(t)
})
