// Goal: a recording has every change of a volume since it began, in order, and nothing else;
// whoever is killed meanwhile. Method: the calls that the kernel's FUSE client makes, against a
// plain buffer; its entries, read back, have to lead from what the snapshot holds to each state
// that the buffer had.
import {
  closeSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import type { PoolConfig } from '../../src/config/index.js'
import { apply, RecordReader, type ReplayTarget } from '../../src/replay/index.js'
import { errnoFrom as errno } from '../support/errno.js'
import { type OpenLab, openLab } from '../support/lab.js'
import { attemptThinfs, MountedPool, needs, run, thinfs } from '../support/mounted-pool.js'
import { filesLeft, makePool } from '../support/pool-files.js'
import { Random } from '../support/random.js'

const KIB = 1024
const MIB = 1024 * KIB
const BLOCK = 64 * KIB
const KEEP_SIZE = 1
const PUNCH_HOLE = 2
const ZERO_RANGE = 16

/** A state in memory, that entries are done to. */
class Content implements ReplayTarget {
  readonly bytes: Buffer

  constructor(bytes: Buffer) {
    this.bytes = bytes
  }

  write(buffer: Uint8Array, length: number, offset: number): void {
    this.bytes.set(buffer.subarray(0, length), offset)
  }

  clear(offset: number, length: number): void {
    this.bytes.fill(0, offset, offset + length)
  }
}

const readerOf = ({ folder }: PoolConfig | { folder: string }, id = 1): RecordReader =>
  new RecordReader(join(folder, `record-${id}.log`), join(folder, `record-${id}.data`))

function content({ fs }: OpenLab, name: string): Buffer {
  const { ino, size } = fs.lookup(1, name)
  const found = Buffer.alloc(size)
  if (fs.read(ino, 0, size, found, 0) !== size) throw new Error('it is not in memory')
  return found
}

const KINDS = ['', 'write', 'discard', 'zero', 'flush', 'mark', 'ignored flush']

/** Kind, offset, length of each entry; how much a flush covered. */
function entriesOf(reader: RecordReader): [string, number, number, number?][] {
  return Array.from({ length: reader.count }, (_, i) => {
    const { kind, offset, length, at } = reader.entry(i + 1)
    const name = KINDS[kind]!
    return name === 'flush' ? [name, offset, length, at] : [name, offset, length]
  })
}

t.test('each state of the volume is one of the recording', async t => {
  const config = await makePool(t.testdir())
  const open = await openLab(config)
  const { fs, lab, volumes } = open
  const size = 8 * BLOCK
  const ino = await open.create('web', size)
  const other = await open.create('other', size)
  const random = new Random(7)
  const model = Buffer.alloc(size)
  const states: Buffer[] = []

  const acts: ((offset: number, length: number, value: number) => Promise<unknown>)[] = [
    async (offset, length, value) => {
      await fs.write(ino, offset, length, Buffer.alloc(length, value), 0)
      model.fill(value, offset, offset + length)
    },
    async (offset, length) => {
      await fs.fallocate(ino, PUNCH_HOLE | KEEP_SIZE, offset, length)
      model.fill(0, offset, offset + length)
    },
    async (offset, length) => {
      await fs.fallocate(ino, ZERO_RANGE | KEEP_SIZE, offset, length)
      model.fill(0, offset, offset + length)
    },
    async (offset, length, value) => {
      await fs.write(other, offset, length, Buffer.alloc(length, value), 0)
      await fs.copyFileRange(other, offset, ino, offset, length)
      model.fill(value, offset, offset + length)
    },
    async () => {
      await volumes.snapshot({ origin: 'web', name: `web@${volumes.count}` })
    },
  ]
  const act = async (): Promise<void> => {
    const offset = random.below(size - 1)
    const wanted = random.chance(0.5) ? random.between(1, 3000) : random.between(1, 3 * BLOCK)
    const length = Math.min(size - offset, wanted)
    await random.of(acts)(offset, length, random.between(1, 255))
  }
  for (let i = 0; i < 20; i++) await act()
  const { base } = await lab.record({ name: 'web' })
  const began = Buffer.from(model)
  for (let i = 0; i < 150; i++) {
    // Requests that wait are recorded like others.
    if (i === 120) await lab.inject({ name: 'web', latencyMs: 1 })
    await act()
    if (i % 30 === 0) await fs.fsync(ino)
    const { entries } = await lab.mark({ name: 'web', mark: `${states.length}` })
    t.ok(entries > states.length)
    states.push(Buffer.from(model))
  }
  await lab.inject({ name: 'web', clear: true })
  const ended = await lab.stopRecording({ name: 'web' })
  t.match(ended, { volume: 'web', base: 'web@record', ended: 'it was stopped', lost: false })
  await act()

  t.ok(content(open, base!).equals(began), 'the snapshot holds what was there when it began')
  const reader = readerOf(config)
  t.equal(reader.count, ended.entries, 'what came after its end is not in it')
  const replayed = new Content(Buffer.from(began))
  let seen = 0
  for (let i = 1; i <= reader.count; i++) {
    apply(reader, i - 1, i, replayed)
    const entry = reader.entry(i)
    if (KINDS[entry.kind] !== 'mark') continue
    if (!replayed.bytes.equals(states[seen]!)) t.fail(`state ${reader.mark(entry)} is another`)
    seen++
  }
  t.equal(seen, states.length)
  const flushes = entriesOf(reader).filter(([kind]) => kind === 'flush')
  t.equal(flushes.length, 5)
  reader.close()
  await open.close()
})

t.test(
  'a flush covers what was acknowledged before it began; one that is ignored, nothing',
  async t => {
    const config = await makePool(t.testdir())
    const open = await openLab(config)
    const { fs, lab } = open
    const ino = await open.create('web', MIB)
    await lab.record({ name: 'web' })
    const data = Buffer.alloc(512, 1)
    await fs.write(ino, 0, 512, data, 0)
    const flushing = fs.fsync(ino)
    await fs.write(ino, 512, 512, data, 0) // acknowledged before the flush ends
    await flushing
    await fs.fsync(ino)
    await lab.inject({ name: 'web', ignoreFlushes: true, writeErrors: [4096, 512] })
    await fs.fsync(ino)
    t.equal(await errno(() => fs.write(ino, 4096, 512, data, 0)), 'EIO')
    const reader = readerOf(config)
    t.same(entriesOf(reader), [
      ['write', 0, 512],
      ['write', 512, 512],
      ['flush', 0, 0, 1],
      ['flush', 0, 0, 3],
      ['ignored flush', 0, 0],
    ])
    reader.close()
    await open.close()
  },
)

t.test(
  'a write that waits when recording begins is in the snapshot or in the recording',
  async t => {
    const config = await makePool(t.testdir(), {
      onFull: 'queue',
      data: { path: '', size: 4 * BLOCK } as never,
    })
    const open = await openLab(config)
    const { fs, lab, volumes } = open
    const ino = await open.create('web', 8 * BLOCK)
    await open.create('full', 8 * BLOCK)
    const full = fs.lookup(1, 'full').ino
    while (volumes.pool.space.data.nrWritable > 0) {
      const at = fs.getattr(full).blocks * 512
      await fs.write(full, at, BLOCK, Buffer.alloc(BLOCK, 1), 0)
    }
    const waits = fs.write(ino, 0, BLOCK, Buffer.alloc(BLOCK, 7), 0)
    t.type(waits, Promise)
    const impatient = AbortSignal.abort(new Error('impatient'))
    const given = lab.record({ name: 'web' }, impatient).catch(err => err.message)
    t.equal(await given, 'impatient', 'who begins it need not wait')
    t.same(await lab.recordings(), [])
    const recording = lab.record({ name: 'web' })
    const later = fs.write(ino, BLOCK, BLOCK, Buffer.alloc(BLOCK, 8), 0)
    await fs.fallocate(full, PUNCH_HOLE | KEEP_SIZE, 0, 4 * BLOCK)
    await Promise.all([waits, later, recording])
    const replayed = new Content(content(open, 'web@record'))
    const reader = readerOf(config)
    apply(reader, 0, reader.count, replayed)
    t.ok(replayed.bytes.equals(content(open, 'web')))
    reader.close()
    await open.close()
  },
)

t.test('a cut that has begun when recording begins is carried out before', async t => {
  const config = await makePool(t.testdir(), { dataBlockSize: 4 * KIB })
  const open = await openLab(config)
  const { fs, lab } = open
  const ino = await open.create('web', 16 * MIB)
  await fs.fallocate(ino, 0, 0, 16 * MIB)
  const cut = fs.setattr(ino, { size: MIB })
  await new Promise(resolve => setImmediate(resolve))
  const recording = lab.record({ name: 'web' })
  const late = errno(() => fs.setattr(ino, { size: 512 }))
  t.match(await cut, { size: MIB })
  await recording
  t.equal(await late, 'EBUSY')
  t.equal(fs.lookup(1, 'web@record').size, MIB)
  t.match(await lab.recordings(), [{ entries: 0 }])
  await open.close()
})

t.test('who is recorded keeps its size and place, and its snapshot its content', async t => {
  const config = await makePool(t.testdir())
  const open = await openLab(config)
  const { fs, lab, volumes } = open
  const ino = await open.create('web', MIB)
  await open.create('other', MIB)
  await lab.record({ name: 'web' })
  const base = fs.lookup(1, 'web@record').ino
  const data = Buffer.alloc(512, 1)
  const EXTENDS = 0
  const cases: [string, string, () => unknown][] = [
    ['a second recording', 'EBUSY', () => lab.record({ name: 'web' })],
    ['a recording of the snapshot', 'EBUSY', () => lab.record({ name: 'web@record' })],
    ['remove', 'EBUSY', () => volumes.remove({ names: ['web'] })],
    ['remove of the snapshot', 'EBUSY', () => volumes.remove({ names: ['web@record'] })],
    ['unlink', 'EBUSY', () => fs.unlink(1, 'web')],
    ['rename over it', 'EBUSY', () => fs.rename(1, 'other', 1, 'web', 0, 1)],
    ['delete by id', 'EBUSY', () => volumes.message({ message: `delete ${ino - 2}` })],
    ['resize', 'EBUSY', () => volumes.resize({ name: 'web', size: 2 * MIB })],
    ['truncate', 'EBUSY', () => fs.setattr(ino, { size: 512 })],
    ['a write past the end', 'EFBIG', () => fs.write(ino, MIB, 512, data, 0)],
    ['fallocate past the end', 'EFBIG', () => fs.fallocate(ino, EXTENDS, MIB, 512)],
    ['copy past the end', 'EFBIG', () => fs.copyFileRange(base, 0, ino, MIB - 512, 1024)],
    ['a write to the snapshot', 'EROFS', () => fs.write(base, 0, 512, data, 0)],
    [
      'a discard of the snapshot',
      'EROFS',
      () => fs.fallocate(base, PUNCH_HOLE | KEEP_SIZE, 0, MIB),
    ],
    ['removing it while it goes on', 'EBUSY', () => lab.removeRecording({ name: 'web' })],
    ['a mark without a name', 'EINVAL', () => lab.mark({ name: 'web', mark: '' })],
    ['a mark where nothing is recorded', 'ENODATA', () => lab.mark({ name: 'other', mark: 'a' })],
    ['stop where nothing is recorded', 'ENODATA', () => lab.stopRecording({ name: 'other' })],
  ]
  for (const [what, wanted, act] of cases) t.equal(await errno(act), wanted, what)
  t.equal(fs.getattr(ino).size, MIB)

  await volumes.rename({ from: 'web', to: 'shop' })
  await fs.write(ino, 0, 512, data, 0)
  t.match(await lab.stopRecording({ name: 'shop' }), { volume: 'shop', entries: 1 })
  t.equal(
    volumes.find('shop')!.io,
    volumes.find('shop')!.device,
    'nothing stands before it any more',
  )
  await volumes.resize({ name: 'shop', size: 2 * MIB })
  t.equal(await errno(() => volumes.remove({ names: ['web@record'] })), 'EBUSY', 'it is kept')
  await lab.removeRecording({ name: 'shop' })
  t.same(await lab.recordings(), [])
  t.same(
    readdirSync(config.folder).filter(name => name.startsWith('record')),
    [],
  )
  t.equal(volumes.find('web@record'), undefined)
  await open.close()
})

t.test('a log that cannot be written ends the recording, and the volume goes on', async t => {
  const config = await makePool(t.testdir())
  const open = await openLab(config)
  const { fs, lab, told } = open
  const ino = await open.create('web', MIB)
  await lab.record({ name: 'web' })
  const data = Buffer.alloc(4096, 1)
  await fs.write(ino, 0, 4096, data, 0)
  // As the host's disk were full from now on.
  const fd = readdirSync('/proc/self/fd').find(fd => linkOf(fd).endsWith('/record-1.data'))!
  closeSync(Number(fd))
  const others: number[] = []
  for (let got = -1; got !== Number(fd) && others.length < 100; others.push(got)) {
    got = openSync('/dev/full', 'r+')
  }
  t.equal(others.pop(), Number(fd), 'it writes to a disk without room')
  for (const other of others) closeSync(other)
  t.equal(await fs.write(ino, 4096, 4096, data, 0), 4096)
  const saved = JSON.parse(readFileSync(join(config.folder, 'lab.json'), 'utf8'))
  t.match(saved.recordings[0].ended, /log cannot be written: .*ENOSPC/, 'saved before the answer')
  t.match(await lab.recordings(), [{ volume: 'web', entries: 1, ended: /ENOSPC/ }])
  t.match(told.at(-1)!, /^web: the recording has ended: the log cannot be written/)
  t.equal(await errno(() => lab.mark({ name: 'web', mark: 'a' })), 'ENODATA')
  t.ok(content(open, 'web').subarray(0, 8192).equals(Buffer.alloc(8192, 1)))
  await open.close()
})

const linkOf = (fd: string): string => {
  try {
    return readlinkSync(`/proc/self/fd/${fd}`)
  } catch {
    return ''
  }
}

/** What an engine that was killed leaves, recordings too. */
function left(t: Test, config: PoolConfig): PoolConfig {
  const copy = filesLeft(config, t.name.replaceAll(/\W+/g, '-'))
  for (const name of readdirSync(config.folder)) {
    if (/^record-|^lab\.json$/.test(name)) {
      writeFileSync(join(copy.folder, name), readFileSync(join(config.folder, name)), {
        mode: 0o600,
      })
    }
  }
  return copy
}

t.test('the next engine goes on, also behind half an entry; the next mount does not', async t => {
  const config = await makePool(t.testdir())
  const first = await openLab(config)
  const ino = await first.create('web', MIB)
  await first.lab.record({ name: 'web' })
  await first.fs.write(ino, 0, 4096, Buffer.alloc(4096, 1), 0)
  await first.fs.settle()
  const killed = left(t, config)
  await first.close()
  writeFileSync(join(killed.folder, 'record-1.log'), Buffer.alloc(17), { flag: 'a' })
  writeFileSync(join(killed.folder, 'record-1.data'), Buffer.alloc(99), { flag: 'a' })

  const next = await openLab(killed, { takesOver: true })
  t.match(await next.lab.recordings(), [{ volume: 'web', entries: 1, ended: null }])
  await next.fs.write(ino, 8192, 4096, Buffer.alloc(4096, 2), 0)
  t.equal(await errno(() => next.volumes.remove({ names: ['web'] })), 'EBUSY')
  const replayed = new Content(content(next, 'web@record'))
  const reader = readerOf(killed)
  apply(reader, 0, reader.count, replayed)
  t.ok(replayed.bytes.equals(content(next, 'web')))
  reader.close()
  await next.close()

  const mounted = await openLab(killed)
  t.match(await mounted.lab.recordings(), [{ ended: 'the pool was unmounted', lost: false }])
  await mounted.fs.write(ino, 0, 512, Buffer.alloc(512, 3), 0)
  t.match(await mounted.lab.recordings(), [{ entries: 2 }])
  t.equal(await errno(() => mounted.volumes.remove({ names: ['web@record'] })), 'EBUSY')
  await mounted.close()
})

t.test('what goes on when the machine goes down is not relied on afterwards', async t => {
  const config = await makePool(t.testdir())
  const first = await openLab(config)
  await first.create('web', MIB)
  await first.lab.record({ name: 'web' })
  const killed = left(t, config)
  await first.close()
  const state = join(killed.folder, 'lab.json')
  const text = readFileSync(state, 'utf8')
  writeFileSync(state, text.replace(/"boot": "[^"]+"/, '"boot": "another"'), { mode: 0o600 })
  const next = await openLab(killed)
  t.match(await next.lab.recordings(), [{ ended: /^the machine went down/, lost: true }])
  await next.close()
})

t.test('a lab.json that is no such thing is told, and nothing is done', async t => {
  const config = await makePool(t.testdir())
  for (const [text, why] of [
    ['{"version": 2}', /lab\.json: version: .*; nothing is injected or recorded$/],
    ['{"version": 1, "pool": "a", "injections": [], "recordings": []}', /: of another pool; /],
  ] as const) {
    writeFileSync(join(config.folder, 'lab.json'), text, { mode: 0o600 })
    const open = await openLab(config)
    t.match(open.told, [why])
    await open.close()
  }
})

t.test('on a mount: an engine that is killed loses nothing of it', needs('/dev/fuse'), async t => {
  const pool = await MountedPool.make(t, 'data: { size: 64M }\nvolumes: { web: { size: 4M } }')
  const record = (...options: string[]) => thinfs('record', pool.folder, ...options)
  await pool.sh('dd if=/dev/urandom of=web bs=64K count=16 conv=notrunc status=none')
  t.match(await record('web'), /^web: 0 entries, 0, from web@record, record-1\.log; recording$/)
  t.match(await thinfs('list', pool.folder), /web@record .*\bweb\b/)
  const writing = pool.sh(
    'dd if=/dev/urandom of=web bs=64K count=64 oflag=dsync conv=notrunc status=none',
  )
  await pool.killEngine()
  await record('web', '--mark', 'killed')
  await thinfs('restart', pool.folder)
  await writing
  t.match(
    await record(),
    /^web: \d+ entries, 4(\.\d+)?M, from web@record, record-1\.log; recording$/,
  )
  t.match(await pool.failure('rm web'), /busy/)
  t.match(await attemptThinfs('record', pool.folder, 'web'), { status: 1, stderr: /VOLUME_BUSY/ })
  t.match(await record('web', '--stop'), /ended: it was stopped$/)
  const reader = readerOf(pool)
  const found = readFileSync(join(pool.path, 'web@record'))
  const replayed = new Content(found)
  apply(reader, 0, reader.count, replayed)
  reader.close()
  writeFileSync(join(pool.plain, 'web'), replayed.bytes)
  await run('cmp', join(pool.plain, 'web'), join(pool.path, 'web'))
  await record('web', '--remove', '--yes')
  t.equal(await pool.sh('ls'), 'web')
  t.equal(await record(), '')
  await pool.close(t)
})
