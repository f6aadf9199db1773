// Goal: a pool becomes smaller under those who use it, though its engine is killed meanwhile, and
// whoever reads the pool's own files at the time finds what was there. Method: fio verifies what it
// has written, twin.py writes the same to a file of the mount and to a plain one; cmp, thin_check
// and the holes of the data file judge at the end.
import { readFileSync, statSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { connectDaemon } from '../../src/control/index.js'
import { fio, load, STOP } from '../support/load.js'
import { attemptThinfs, MountedPool, needs, sh, thinfs, until } from '../support/mounted-pool.js'

const MIB = 2 ** 20
const YAML = `data: { size: 256M }
volumes: { low: { size: 160M }, a: { size: 16M }, b: { size: 24M }, still: { size: 8M } }`

t.test('while it is read and written, and the engine is killed', needs('/dev/fuse'), async t => {
  const pool = await MountedPool.make(t, YAML)
  await pool.sh('fallocate -l 160M low')
  await sh(pool.plain, 'head -c 8M /dev/urandom > still; cp still ../mount/still')
  const verified = fio(pool, join(pool.path, 'a'), '--size=16M --bsrange=4k-256k --iodepth=8')
  const files = [pool.path, pool.plain].map(folder => join(folder, 'b'))
  const twin = await load<{ steps: number }>(pool, 'twin', ...files, 20_261_128, STOP)
  await thinfs('snapshot', pool.folder, 'still', 'snapshot')
  await thinfs('snapshot', pool.folder, 'a', 'old')
  await thinfs('remove', pool.folder, 'low', '--yes')
  const used = async (): Promise<number> => (await pool.status()).data.usedBlocks
  await until(async () => (await used()) < 1500)

  // A command that reads the pool's own files, as thinfs send does.
  const daemon = (await connectDaemon({ file: '', folder: pool.folder }))!
  t.teardown(() => daemon.close())
  const held = await daemon.hold({ names: ['still'] })
  const reader = await open(join(pool.path, held.volumes[0]!.file!))
  const before = readFileSync(pool.metadata)
  const shrunk = attemptThinfs('shrink', pool.folder, '--data', '96M')
  await until(async () => (await pool.status()).shrink?.waits === true)
  t.ok((await pool.status()).shrink!.left > 0)
  const root = held.volumes[0]!.root * 4096
  t.ok(
    readFileSync(pool.metadata)
      .subarray(root, root + 4096)
      .equals(before.subarray(root, root + 4096)),
  )
  await t.rejects(daemon.extend({ data: 512 * MIB }), { code: 'POOL_SHRINKING' })
  const pid = await pool.enginePid()
  await reader.close()
  process.kill(pid, 'SIGKILL')
  t.match(await shrunk, { status: 0, stdout: /^data: 96M, it was 256M; .* moved\n$/ })
  t.not(await pool.enginePid(), pid)

  t.equal(statSync(pool.data).size, 96 * MIB)
  t.match(readFileSync(join(pool.folder, 'pool.yaml'), 'utf8'), 'data: { size: 96M }')
  t.equal((await pool.status()).data.blocks, 96 * 16)
  // The next engine does not make it as large as it was when it was mounted.
  await pool.killEngine()
  t.equal((await pool.status()).data.blocks, 96 * 16)
  await verified.stop()
  await twin.stop()
  await pool.sh('cmp b ../plain/b; cmp still ../plain/still; cmp snapshot ../plain/still')
  await pool.remount()
  await pool.sh('cmp b ../plain/b; cmp still ../plain/still; cmp snapshot ../plain/still')
  await pool.close(t)
})
