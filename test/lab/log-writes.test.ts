// Goal: what is exported is what dm-log-writes would have logged. Method: a reader written from the
// kernel's documentation of the format; its example of order; and QEMU's blklogwrites, which writes
// the same format, before a volume that is recorded: both logs have to be the same. Source:
// Documentation/admin-guide/device-mapper/log-writes.rst, drivers/md/dm-log-writes.c.
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { RecordWriter } from '../../src/lab/record-writer.js'
import { apply, exportLogWrites, RECORDED, RecordReader } from '../../src/replay/index.js'
import { HeldFolder } from '../../src/storage/index.js'
import { attemptThinfs, MountedPool, needs, run, sh, thinfs } from '../support/mounted-pool.js'
import { Random } from '../support/random.js'

const FLUSH = 1n
const DISCARD = 4n
const MARK = 8n

interface LoggedEntry {
  what: 'write' | 'flush' | 'discard' | 'mark'
  /** Bytes of the device. */
  offset: number
  length: number
  data: Buffer
}

/** The entries of a log: a sector each, those of writes with their data behind. */
function readLog(t: Test, path: string): LoggedEntry[] {
  const log = readFileSync(path)
  const word = (at: number): bigint => log.readBigUInt64LE(at)
  t.equal(word(0), 0x6a736677736872n, 'magic')
  t.equal(word(8), 1n, 'version')
  const sector = log.readUInt32LE(24)
  t.equal(sector, 512)
  const entries: LoggedEntry[] = []
  let at = sector
  for (let i = 0n; i < word(16); i++) {
    const [first, count, flags, dataLength] = [0, 8, 16, 24].map(field => word(at + field))
    const offset = Number(first) * sector
    const length = Number(count) * sector
    const name = log.subarray(at + 32, at + 32 + Number(dataLength))
    at += sector
    if (flags === MARK) entries.push({ what: 'mark', offset, length, data: name })
    else if (flags === FLUSH) entries.push({ what: 'flush', offset, length, data: name })
    else if (flags === DISCARD) entries.push({ what: 'discard', offset, length, data: name })
    else {
      if (flags !== 0n) t.fail(`entry ${i}: flags ${flags}`)
      entries.push({ what: 'write', offset, length, data: log.subarray(at, at + length) })
      at += length
    }
  }
  return entries
}

/** As the documentation has it, for one that goes to the log by its own rules. */
const brief = (entries: LoggedEntry[]): string[] =>
  entries.map(({ what, data }) =>
    what === 'mark' ? data.toString() : what === 'write' ? `W${data[0]}` : what,
  )

function recorded(folder: string, write: (writer: RecordWriter) => void): RecordReader {
  const held = HeldFolder.open(folder)
  const writer = RecordWriter.create(held, 1)
  write(writer)
  writer.close()
  held.close()
  return new RecordReader(join(folder, 'record-1.log'), join(folder, 'record-1.data'))
}

t.test(
  "the documentation's example: a flush stands behind what had ended when it began",
  async t => {
    const folder = t.testdir()
    // W1,W2,W3,C3,C2,Wflush,C1,Cflush
    const reader = recorded(folder, writer => {
      for (const value of [3, 2]) writer.write(value * 512, 512, Buffer.alloc(512, value), 0)
      const began = writer.count
      writer.write(512, 512, Buffer.alloc(512, 1), 0)
      writer.flush(began)
      writer.ignoredFlush()
      writer.mark('fsync')
    })
    const path = join(folder, 'exported')
    t.equal(
      exportLogWrites(reader, path, () => t.fail('all are whole sectors')),
      6,
    )
    const wanted = ['W3', 'W2', 'flush', 'W1', 'fsync', 'dm-log-writes-end']
    t.same(brief(readLog(t, path)), wanted)
    t.throws(() => exportLogWrites(reader, path, () => {}), { code: 'EEXIST' })
    reader.close()
  },
)

t.test(
  'parts of sectors are logged as whole ones, with what the volume had around them',
  async t => {
    const folder = t.testdir()
    const size = 64 * 512
    const random = new Random(11)
    const model = Buffer.alloc(size, 0xaa)
    const base = Buffer.from(model)
    const states: Buffer[] = []
    const reader = recorded(folder, writer => {
      for (let i = 0; i < 200; i++) {
        const offset = random.below(size - 1)
        const length = Math.min(size - offset, random.between(1, random.chance(0.5) ? 600 : 9000))
        const kind = random.below(4)
        if (kind < 2) writer.write(offset, length, Buffer.alloc(length, i), 0)
        else writer.clear(kind === 2 ? RECORDED.discard : RECORDED.zero, offset, length)
        model.fill(kind < 2 ? i : 0, offset, offset + length)
        writer.mark(`${i}`)
        states.push(Buffer.from(model))
      }
    })
    const content = Buffer.from(base)
    const target = {
      write: (bytes: Uint8Array, length: number, offset: number) =>
        content.set(bytes.subarray(0, length), offset),
      clear: (offset: number, length: number) => void content.fill(0, offset, offset + length),
    }
    let done = 0
    const path = join(folder, 'exported')
    exportLogWrites(reader, path, (entries, offset, buffer) => {
      apply(reader, done, entries, target)
      done = entries
      content.copy(buffer, 0, offset, offset + buffer.length)
    })
    const replayed = Buffer.from(base)
    let seen = 0
    for (const { what, offset, length, data } of readLog(t, path)) {
      if (what === 'write') data.copy(replayed, offset)
      if (what === 'discard') replayed.fill(0, offset, offset + length)
      if (what !== 'mark' || data.toString() === 'dm-log-writes-end') continue
      if (!replayed.equals(states[Number(data.toString())]!)) t.fail(`state ${data} is another`)
      seen++
    }
    t.equal(seen, states.length)
    reader.close()
  },
)

t.test('no discard is larger than what replay-log clears in a file', async t => {
  const folder = t.testdir()
  const most = 128 * 2 ** 20
  const reader = recorded(folder, writer => {
    writer.clear(RECORDED.discard, 512, 2 * most + 512)
    writer.clear(RECORDED.discard, 512, most)
  })
  const path = join(folder, 'exported')
  exportLogWrites(reader, path, () => t.fail('all are whole sectors'))
  const discards = readLog(t, path).filter(({ what }) => what === 'discard')
  t.same(
    discards.map(({ offset, length }) => [offset, length]),
    [
      [512, most],
      [512 + most, most],
      [512 + 2 * most, 512],
      [512, most],
    ],
  )
  reader.close()
})

t.test(
  "a volume's recording is what QEMU logged of the same requests",
  needs('/dev/fuse'),
  async t => {
    const pool = await MountedPool.make(t, 'data: { size: 64M }\nvolumes: { web: { size: 4M } }')
    const folder = mkdtempSync(join(tmpdir(), 'thinfs-log-'))
    t.teardown(() => rmSync(folder, { recursive: true }))
    const [ours, theirs] = ['ours', 'theirs'].map(name => join(folder, name)) as [string, string]
    await sh(folder, 'truncate -s 2M theirs')
    await thinfs('record', pool.folder, 'web')
    const image = `driver=blklogwrites,file.driver=file,file.filename=${pool.path}/web,log.driver=file,log.filename=${theirs}`
    const commands = [
      ...[
        'write -P 1 0 64k',
        'write -P 2 4k 4k',
        'flush',
        'write -P 3 1M 128k',
        'discard 64k 128k',
      ],
      ...[
        'write -z 256k 8k',
        'write -P 4 3M 512',
        'flush',
        'discard 0 512',
        'write -P 5 0 4k',
        'flush',
      ],
    ]
    const options = ['-t', 'writeback', '-d', 'unmap', '--image-opts', image]
    await run('qemu-io', ...options, ...commands.flatMap(command => ['-c', command]))
    await thinfs('record', pool.folder, 'web', '--mark', 'the end')
    t.match(await thinfs('record', pool.folder, 'web', '--export', ours), `${ours}: 13 entries`)

    const wanted = readLog(t, theirs)
    const found = readLog(t, ours)
    t.same(brief(found.slice(-2)), ['the end', 'dm-log-writes-end'])
    t.same(found.slice(0, -2), wanted)
    t.equal(wanted.length, commands.length)
    const refused = await attemptThinfs('record', pool.folder, 'web', '--export', ours)
    t.match(refused, { status: 1, stderr: /file already exists.*EEXIST/ })
    const unnamed = await attemptThinfs('record', pool.folder, '--export', `${ours}.2`)
    t.match(unnamed, { status: 2, stderr: /name of a volume.*BAD_ARGUMENT/ })
    t.equal(await pool.sh('ls'), 'web\nweb@record')
    await pool.close(t)
  },
)
