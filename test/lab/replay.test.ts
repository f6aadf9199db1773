// Goal: a replayed state is one that the volume had, and with a power cut one that the rules of a
// disk allow: what was flushed, and of each sector since then any version. Method: recordings
// written here, against the set of versions of each sector; on a mount, what cmp and sha256sum say.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync } from 'node:fs'
import { join, resolve } from 'node:path'
import t from 'tap'
import { RecordWriter } from '../../src/lab/record-writer.js'
import {
  applyUnflushed,
  flushMoments,
  momentAt,
  RECORDED,
  RecordReader,
  type ReplayTarget,
} from '../../src/replay/index.js'
import { HeldFolder } from '../../src/storage/index.js'
import { attemptThinfs, MountedPool, needs, thinfs, until } from '../support/mounted-pool.js'
import { Random } from '../support/random.js'

const SECTOR = 512
const SECTORS = 64

/** A state whose sectors hold one value each, 0 to begin with. */
class Sectors implements ReplayTarget {
  readonly values = new Uint8Array(SECTORS)

  write(buffer: Uint8Array, length: number, offset: number): void {
    for (let done = 0; done < length; done += SECTOR) {
      this.values[(offset + done) / SECTOR] = buffer[done]!
    }
  }

  clear(offset: number, length: number): void {
    this.values.fill(0, offset / SECTOR, (offset + length) / SECTOR)
  }
}

/** Records 40 changes, of which none is like another, and flushes the first 10. */
function recorded(folder: string): { reader: RecordReader; changes: [number, number, number][] } {
  const held = HeldFolder.open(folder)
  const writer = RecordWriter.create(held, 1)
  const random = new Random(3)
  const changes: [first: number, count: number, value: number][] = []
  for (let i = 1; i <= 40; i++) {
    const first = random.below(SECTORS - 1)
    const count = random.between(1, SECTORS - first)
    const value = i % 9 === 0 ? 0 : i
    const range = [first * SECTOR, count * SECTOR] as const
    if (value > 0) writer.write(...range, Buffer.alloc(range[1], value), 0)
    else writer.clear(i % 2 === 0 ? RECORDED.discard : RECORDED.zero, ...range)
    changes.push([first, count, value])
    if (i === 10) {
      writer.flush(10)
      writer.mark('flushed')
    }
    if (i === 20) writer.ignoredFlush()
  }
  writer.flush(12)
  writer.close()
  held.close()
  const path = (name: string): string => join(folder, `record-1.${name}`)
  return { reader: new RecordReader(path('log'), path('data')), changes }
}

t.test('moments of a recording: what was acknowledged, and what of it was durable', async t => {
  const { reader } = recorded(t.testdir())
  // Entry 11 is the flush, 12 the mark, 23 the flush that was ignored, 44 the last one.
  t.same(flushMoments(reader, false), [
    { entry: 11, durable: 10, mark: null },
    { entry: 23, durable: 10, mark: 'flushed' },
    { entry: 44, durable: 12, mark: 'flushed' },
  ])
  t.same(flushMoments(reader, true), [
    { entry: 10, durable: 0, mark: null },
    { entry: 22, durable: 10, mark: 'flushed' },
    { entry: 43, durable: 10, mark: 'flushed' },
    { entry: 44, durable: 12, mark: 'flushed' },
  ])
  t.match(momentAt(reader, '0'), { entry: 0, durable: 0 })
  t.match(momentAt(reader, 'flushed'), { entry: 12, durable: 10 })
  for (const wrong of ['45', 'nobody', '-1', '']) {
    t.throws(() => momentAt(reader, wrong), { code: 'BAD_ARGUMENT' }, wrong)
  }
  reader.close()
})

t.test('a power cut leaves any version of a sector since the last flush, and no other', async t => {
  const { reader, changes } = recorded(t.testdir())
  const window = changes.slice(10)
  const allowed = Array.from({ length: SECTORS }, () => new Set([255]))
  for (const [first, count, value] of window) {
    for (let sector = first; sector < first + count; sector++) allowed[sector]!.add(value)
  }
  const seen = { dropped: 0, whole: 0, torn: 0, reordered: 0 }
  const states = new Set<string>()
  for (let seed = 0; seed < 200; seed++) {
    const state = new Sectors()
    state.values.fill(255)
    const again = new Sectors()
    again.values.fill(255)
    const range = { from: 10, to: 44, seed }
    applyUnflushed(reader, range, state)
    applyUnflushed(reader, range, again)
    t.same(again.values, state.values, 'the same seed, the same state')
    states.add(state.values.join())
    state.values.forEach((value, sector) => {
      if (!allowed[sector]!.has(value)) t.fail(`seed ${seed}: sector ${sector} has ${value}`)
    })
    // The last change has nothing after it: what is missing of it was dropped.
    const [first, count, value] = window.at(-1)!
    const has = state.values.subarray(first, first + count).filter(found => found === value).length
    seen[has === 0 ? 'dropped' : has === count ? 'whole' : 'torn']++
    // Of a sector that several changes have, one is there before the last in many.
    if (window.filter(([at, n]) => at <= 30 && at + n > 30).at(-2)![2] === state.values[30]) {
      seen.reordered++
    }
  }
  for (const [fate, count] of Object.entries(seen)) t.ok(count > 0, `${fate}: ${count} of 200`)
  t.ok(states.size > 190, 'another seed, another state')
  reader.close()
})

t.test('a recording that is damaged is told by the entry', async t => {
  const folder = t.testdir()
  const held = HeldFolder.open(folder)
  const writer = RecordWriter.create(held, 1)
  writer.write(0, SECTOR, Buffer.alloc(SECTOR), 0)
  writer.clear(9 as never, 0, SECTOR)
  writer.close()
  held.close()
  const reader = new RecordReader(join(folder, 'record-1.log'), join(folder, 'record-1.data'))
  t.match(reader.entry(1), { kind: RECORDED.write })
  t.throws(() => reader.entry(2), {
    code: 'IO_ERROR',
    message: /record-1\.log: entry 2 is damaged/,
  })
  reader.close()
})

t.test('thinfs replay: each state, checked by a program', needs('/dev/fuse'), async t => {
  const pool = await MountedPool.make(t, 'data: { size: 64M }\nvolumes: { web: { size: 1M } }')
  const replay = (...args: string[]) => attemptThinfs('replay', pool.folder, 'web', ...args)
  const write = (value: number, flags: string) =>
    pool.sh(
      `head -c 256K /dev/zero | tr '\\0' '\\${value}' > ${pool.plain}/${value}
      dd if=${pool.plain}/${value} of=web bs=64K conv=notrunc${flags} status=none
      cp web ${pool.plain}/web-${value}`,
    )
  await write(1, ',fsync')
  const none =
    /^thinfs: web: the volume has no recording; thinfs record POOL web begins .* \(NO_RECORDING\)\n$/
  t.match(await replay('--each-flush', 'true'), {
    status: 1,
    stderr: none,
  })
  // The engine refuses these, and says the same.
  const record = (name: string, ...args: string[]) =>
    attemptThinfs('record', pool.folder, name, ...args)
  for (const args of [['--mark', 'm'], ['--stop'], ['--remove', '--yes'], ['--export', '/none']]) {
    t.match(await record('web', ...args), { status: 1, stderr: none }, args[0])
    const missing = 'thinfs: other: no volume has the name (VOLUME_MISSING)\n'
    t.match(await record('other', ...args), { status: 1, stderr: missing }, args[0])
  }
  await thinfs('record', pool.folder, 'web')
  await write(2, ',fsync') // 4 writes and a flush
  await thinfs('record', pool.folder, 'web', '--mark', 'two')
  await pool.sh('fallocate -p -o 0 -l 64K web; cp web ../plain/web-4') // which flushes it
  await write(3, '')

  for (const [to, file] of [
    ['0', 'web-1'],
    ['two', 'web-2'],
    ['7', 'web-4'],
    ['12', 'web-3'],
  ] as const) {
    const { status, stderr } = await replay('--to', to, '--', 'cmp', '{}', join(pool.plain, file))
    t.equal(status, 0, `--to ${to}: ${stderr}`)
  }
  const compare = ['--json', '--', 'sh', '-c', 'cmp {} $0', `${pool.plain}/web-2`]
  const report = JSON.parse((await replay('--each-flush', ...compare)).stdout)
  t.match(report, { states: 3, seed: null, failed: [{ entry: 8 }, { entry: 12, mark: 'two' }] })
  t.match(report.failed[0].output, /differ: byte 1/)

  // The states before each flush, and at the end: of what was not flushed a seed leaves some.
  const drop = ['--drop-unflushed', '5']
  const dropped = await replay('--each-flush', ...drop, '--', 'cmp', '{}', `${pool.plain}/web-3`)
  t.equal(dropped.status, 1)
  t.match(
    dropped.stdout,
    /^entry 4: status 1\n.*\nentry 7, .*\nentry 12, .*\n3 states checked, seed 5\n$/s,
  )
  const again = /^ {2}thinfs (replay .* --to 12 --drop-unflushed 5 -- .*)$/m.exec(
    dropped.stdout,
  )![1]!
  t.match(await attemptThinfs(...again.split(' ')), { status: 1, stdout: /differ.*\nentry 12/s })
  const show = 'sha256sum < "$THINFS_VOLUME"; echo $THINFS_ENTRY $THINFS_MARK'
  const first = await replay('--to', '12', ...drop, '--', 'sh', '-c', show)
  t.match(first.stdout, /^[0-9a-f]{64} {2}-\n12 two\n1 states checked, seed 5\n$/)
  const second = await replay('--to', '12', ...drop, '--', 'sh', '-c', show)
  t.equal(second.stdout, first.stdout, 'the same seed, the same state')

  const usage = [['true'], ['--to', '1', '--each-flush', 'true'], ['--to', '13', 'true']]
  for (const args of usage) t.match(await replay(...args), { status: 2 }, args.join(' '))
  t.match(await replay('--to', '1', '/none'), { status: 1, stderr: /\/none: no such program/ })

  const program = resolve(import.meta.dirname, '../../bin/thinfs.js')
  const args = [program, 'replay', pool.folder, 'web', '--to', '1', '--', 'sleep', '100']
  const child = spawn(process.execPath, args, { stdio: 'ignore' })
  const ended = once(child, 'exit')
  await until(() => readdirSync(pool.path).some(name => name.endsWith('-check')))
  child.kill('SIGTERM')
  t.same((await ended)[0], 1, 'interrupted')
  t.equal(await pool.sh('ls'), 'web\nweb@record', 'what was made for it is gone')

  await pool.umount()
  await thinfs('remove', pool.folder, 'web@record', '--yes')
  await pool.mount()
  t.match(await replay('--to', '1', 'true'), {
    status: 1,
    stderr: /^thinfs: web: the snapshot that it begins with was removed; .* \(NO_RECORDING\)\n$/,
  })
  await thinfs('record', pool.folder, 'web', '--remove', '--yes')
  await pool.close(t)
})
