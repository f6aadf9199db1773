/**
 * Goal: the kernel's dm-thin and thinfs take each other's pools. Method: each reads and changes
 * what the other wrote; the kernel runs in a virtual machine (rig/run) and says what every thin
 * device reads as, and a plain buffer per volume says what it should. Takes minutes: npm run
 * test:kernel.
 */
import { execFileSync, spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { mkdtempSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { gunzipSync } from 'node:zlib'
import t, { type Test } from 'tap'
import { KIB, MIB, SECTOR_SIZE } from '../../src/base/index.js'
import { loadConfig, type PoolConfig } from '../../src/config/index.js'
import { initPool, type OpenPool, openPool } from '../../src/volumes/index.js'

const RIG = join(import.meta.dirname, 'rig')
const KERNEL_POOL = join(import.meta.dirname, '../fixtures/kernel-pool')
const BLOCK = 64 * KIB

interface Thin {
  id: number
  sectors: number
}

/** What a thin device reads as: its SHA-256 and how much of it is mapped, by device id. */
type Contents = Map<number, { sectors: number; sha256: string; mappedSectors: number }>

/** What each volume should read as, by device id. */
type Model = Map<number, Buffer>

// The kernel's side

/** Runs a script of the rig on the pool in `folder`. @returns what it printed */
function runInKernel(t: Test, folder: string, script: string, args: readonly unknown[]): string {
  const { status, stdout, stderr } = spawnSync(
    join(RIG, 'run'),
    [
      join(folder, 'metadata'),
      join(folder, 'data'),
      join(RIG, 'scripts', script),
      ...args.map(String),
    ],
    { encoding: 'utf8', maxBuffer: 16 * MIB },
  )
  t.equal(status, 0, script, { stdout, stderr })
  return stdout
}

const asArguments = (thins: Iterable<Thin>) =>
  [...thins].flatMap(({ id, sectors }) => [id, sectors])

function parseContents(output: string): Contents {
  const lines = output.matchAll(/^thin (\d+) (\d+) ([0-9a-f]{64}) (\d+)$/gm)
  return new Map(
    [...lines].map(([, id, sectors, sha256, mapped]) => [
      Number(id),
      { sectors: Number(sectors), sha256: sha256!, mappedSectors: Number(mapped) },
    ]),
  )
}

/** Used data blocks of the kernel's last status line of the pool. */
const usedDataBlocks = (output: string) =>
  Number([...output.matchAll(/^status pool: .* (\d+)\/\d+ - \S+ \S*discard/gm)].at(-1)?.[1])

// The side of thinfs

const nameOf = (id: number) => `volume-${id}`

function makeFolder(t: Test): string {
  const folder = mkdtempSync(join(tmpdir(), 'thinfs-kernel-'))
  t.teardown(() => rmSync(folder, { recursive: true }))
  return folder
}

/** Writes the pool.yaml of a folder: names and lengths of devices are no part of the metadata. */
function configure(folder: string, dataSize: number, thins: Iterable<Thin>): PoolConfig {
  const volumes = [...thins].map(
    ({ id, sectors }) => `  ${nameOf(id)}: { id: ${id}, size: ${sectors * SECTOR_SIZE} }\n`,
  )
  const file = join(folder, 'pool.yaml')
  writeFileSync(
    file,
    `pool: kernel\ndata: { path: data, size: ${dataSize} }\nmetadata: { path: metadata, size: 4M }\n` +
      `volumes:\n${volumes.join('')}`,
  )
  return loadConfig(file)
}

/**
 * Opens the pool in `folder` with these devices as volumes; closed and checked when `use` is done.
 */
async function withPool<T>(
  t: Test,
  folder: string,
  thins: Iterable<Thin>,
  use: (pool: OpenPool) => T | Promise<T>,
): Promise<T> {
  const pool = await openPool(configure(folder, statSync(join(folder, 'data')).size, thins))
  try {
    const result = await use(pool)
    t.same((await pool.volumes.check()).problems, [], 'no problems')
    return result
  } finally {
    await pool.close()
    const { status, stderr } = spawnSync('thin_check', [join(folder, 'metadata')], {
      encoding: 'utf8',
    })
    t.equal(status, 0, 'thin_check', { stderr })
  }
}

function deviceOf({ volumes }: OpenPool, id: number) {
  return volumes.find(nameOf(id))!.device
}

async function readVolumes(pool: OpenPool, thins: Iterable<Thin>): Promise<Model> {
  const model: Model = new Map()
  for (const { id, sectors } of thins) {
    const content = Buffer.alloc(sectors * SECTOR_SIZE)
    const device = deviceOf(pool, id)
    for (let at = 0; at < content.length; at += MIB) {
      const size = Math.min(MIB, content.length - at)
      // The kernel's machine writes past the page cache of this one.
      if (!device.read(at, size, content, at)) await device.readLater(at, size, content, at)
    }
    model.set(id, content)
  }
  return model
}

const sha256 = (content: Buffer) => createHash('sha256').update(content).digest('hex')
const hashes = (model: Model) => new Map([...model].map(([id, content]) => [id, sha256(content)]))
const hashesOf = (contents: Contents) =>
  new Map([...contents].map(([id, { sha256 }]) => [id, sha256]))
const thinsOf = (model: Model): Thin[] =>
  [...model].map(([id, content]) => ({ id, sectors: content.length / SECTOR_SIZE }))

/** Changes volumes and what the model says of them alike. */
class Changes {
  #pool: OpenPool
  #model: Model
  #letter = 0
  constructor(pool: OpenPool, model: Model) {
    this.#pool = pool
    this.#model = model
  }

  async write(id: number, offset: number, size: number): Promise<void> {
    const content = Buffer.alloc(size, 97 + (this.#letter++ % 26))
    await deviceOf(this.#pool, id).write(offset, size, content, 0)
    content.copy(this.#model.get(id)!, offset)
  }

  async discard(id: number, offset: number, size: number): Promise<void> {
    await deviceOf(this.#pool, id).discard(offset, size)
    this.#model.get(id)!.fill(0, offset, offset + size)
  }

  async snapshot(id: number, origin: number): Promise<void> {
    await this.#pool.volumes.snapshot({ origin: nameOf(origin), name: nameOf(id), devId: id })
    this.#model.set(id, Buffer.from(this.#model.get(origin)!))
  }

  async remove(id: number): Promise<void> {
    await this.#pool.volumes.remove({ names: [nameOf(id)] })
    this.#model.delete(id)
  }
}

/** Every kind of change: provisions, breaks sharing, unmaps, snapshots of snapshots, a removal. */
async function exercise(changes: Changes, origin: number, size: number): Promise<void> {
  const snapshot = 100 + origin
  // Enough blocks for a tree of two levels, with gaps; then whole blocks, parts, and across blocks.
  for (let block = 0; block * 2 * BLOCK < size / 2; block++) {
    await changes.write(origin, block * 2 * BLOCK, block % 7 === 0 ? BLOCK : 4 * KIB)
  }
  await changes.write(origin, size - 5 * SECTOR_SIZE, 5 * SECTOR_SIZE)
  await changes.snapshot(snapshot, origin)
  await changes.write(origin, 10 * BLOCK + 100 * SECTOR_SIZE, 3 * BLOCK)
  await changes.write(snapshot, 0, 512)
  await changes.write(snapshot, size / 2 + BLOCK, 8 * BLOCK)
  await changes.snapshot(snapshot + 1, snapshot)
  await changes.discard(snapshot, 4 * BLOCK, 16 * BLOCK)
  await changes.discard(origin, BLOCK / 2, 2 * BLOCK)
  await changes.write(snapshot + 1, 6 * BLOCK, BLOCK)
  await changes.snapshot(snapshot + 2, origin)
  await changes.write(origin, 20 * BLOCK + 7 * SECTOR_SIZE, SECTOR_SIZE)
  await changes.remove(snapshot + 2)
}

/**
 * The kernel reads from every device what the model says, and counts the blocks that thinfs counts.
 */
function kernelReads(t: Test, folder: string, model: Model): string {
  const output = runInKernel(t, folder, 'read-pool.sh', asArguments(thinsOf(model)))
  t.same(hashesOf(parseContents(output)), hashes(model), 'the kernel reads what was written')
  return output
}

/**
 * thinfs reads from every device what the kernel read, and counts the blocks that the kernel
 * counts.
 */
async function thinfsReads(t: Test, folder: string, output: string): Promise<Model> {
  const contents = parseContents(output)
  const thins = [...contents].map(([id, { sectors }]) => ({ id, sectors }))
  return withPool(t, folder, thins, async pool => {
    const model = await readVolumes(pool, thins)
    t.same(hashes(model), hashesOf(contents), 'thinfs reads what the kernel reads')
    const volumes = await pool.volumes.list()
    t.same(
      new Map(volumes.map(({ devId, mapped }) => [devId, mapped / SECTOR_SIZE])),
      new Map([...contents].map(([id, { mappedSectors }]) => [id, mappedSectors])),
      'mapped',
    )
    const status = await pool.volumes.status()
    t.equal(status.data.usedBlocks, usedDataBlocks(output), 'used data blocks')
    return model
  })
}

t.test('the kernel reads, then writes to a pool that thinfs made', async t => {
  const folder = makeFolder(t)
  const model: Model = new Map([
    [0, Buffer.alloc(64 * MIB)],
    [7, Buffer.alloc(5 * MIB + 3 * SECTOR_SIZE)],
  ])
  await initPool(configure(folder, 128 * MIB, thinsOf(model)))
  await withPool(t, folder, thinsOf(model), async pool => {
    const changes = new Changes(pool, model)
    await exercise(changes, 0, 64 * MIB)
    await changes.write(7, 5 * MIB, 3 * SECTOR_SIZE)
    t.same(
      hashes(await readVolumes(pool, thinsOf(model))),
      hashes(model),
      'thinfs reads what was written',
    )
  })
  const before = kernelReads(t, folder, model)
  await thinfsReads(t, folder, before)

  const after = runInKernel(t, folder, 'exercise-pool.sh', asArguments(thinsOf(model)))
  t.equal(parseContents(after).size, 2 * model.size, 'every device and a snapshot of it')
  await thinfsReads(t, folder, after)
})

t.test('thinfs reads, then writes to a pool that a kernel made', async t => {
  const folder = makeFolder(t)
  const manifest = JSON.parse(readFileSync(join(KERNEL_POOL, 'manifest.json'), 'utf8'))
  writeFileSync(
    join(folder, 'metadata'),
    gunzipSync(readFileSync(join(KERNEL_POOL, 'meta.img.gz'))),
  )
  execFileSync('zstd', ['-dq', join(KERNEL_POOL, 'data.img.zst'), '-o', join(folder, 'data')])
  const thins: (Thin & { sha256: string })[] = manifest.thins
  const model = await withPool(t, folder, thins, async pool => {
    const model = await readVolumes(pool, thins)
    t.same(
      hashes(model),
      new Map(thins.map(({ id, sha256 }) => [id, sha256])),
      'as the manifest says',
    )
    await exercise(new Changes(pool, model), 1, thins[1]!.sectors * SECTOR_SIZE)
    return model
  })
  kernelReads(t, folder, model)
})

t.test('thinfs reads a pool that the kernel makes now', async t => {
  const folder = makeFolder(t)
  for (const [name, size] of [
    ['metadata', 4 * MIB],
    ['data', 64 * MIB],
  ] as const) {
    writeFileSync(join(folder, name), '')
    truncateSync(join(folder, name), size)
  }
  const output = runInKernel(t, folder, 'make-pool.sh', [(64 * MIB) / SECTOR_SIZE])
  t.equal(parseContents(output).size, 3)
  await thinfsReads(t, folder, output)
})
