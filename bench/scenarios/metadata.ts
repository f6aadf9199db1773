import { execFile } from 'node:child_process'
import { randomFillSync } from 'node:crypto'
import { closeSync, openSync, rmSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { KIB, METADATA_BLOCK_SIZE, TIB } from '../../src/base/index.js'
import { loadConfig, type PoolConfig } from '../../src/config/index.js'
import { MetadataView } from '../../src/metadata/index.js'
import { changesBetween, committedOf, readFrom, sendTo } from '../../src/streams/index.js'
import { openPool, PoolFiles } from '../../src/volumes/index.js'
import {
  BLOCK,
  METADATA_SIZE,
  makeRestored,
  type Restored,
  restoreMetadata,
  scattered,
} from '../restored-pool.js'
import { atMost, type Cell, paired, type Scenario, type Settings } from '../scenario.js'
import { sparseFile, THINFS } from '../servers.js'

const exec = promisify(execFile)

const NR_CHANGED = 100
const MAX_MEGABYTES = 300
/** How often the tool's time thinfs takes at most. */
const MAX_TIMES = 2

/** Runs a command and prints the seconds that it took and its largest size in KiB. */
const TIMED =
  'import resource,subprocess,sys,time\n' +
  'begin=time.monotonic()\n' +
  'subprocess.run(sys.argv[1:],stdout=subprocess.DEVNULL,check=True)\n' +
  'took=time.monotonic()-begin\n' +
  'print(took,resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)'

/**
 * A volume of 1 TiB, all of it mapped in runs of eight blocks. Where `--quick` is given it is 64
 * GiB. Dumps go to /dev/null. What is repaired has lost its index of the data's space map: thinfs
 * checks all of it first and afterwards, which is part of its time. `call` is the work itself, in a
 * program that runs already; `command` starts Node and opens the pool, which is not mounted.
 */
export const metadata: Scenario = {
  name: 'metadata',
  about: "dump, repair, delta and send of 16.7 million mappings, on this machine's disk",
  memory: 0,
  async run({ disk }, settings) {
    const size = settings.quick ? TIB / 16 : TIB
    const shape: Restored = {
      blockSize: BLOCK,
      dataSize: 2 * size,
      entries: [{ name: 'huge', size, runs: scattered(size, BLOCK) }],
    }
    const wants = (part: string): boolean => settings.wants(`metadata/${part}`)
    const template = join(disk, 'template')
    await restoreMetadata(template, shape)
    const pool = join(disk, 'pool')
    await makeRestored(pool, template, shape)
    const cells: Cell[] = []
    if (wants('dump')) cells.push(...(await dump(pool, settings)))
    if (wants('delta') || wants('send')) {
      cells.push(...(await differences(loadConfig(join(pool, 'pool.yaml')), size, settings)))
    }
    rmSync(pool, { recursive: true })
    if (wants('repair')) cells.push(...(await repair(disk, { template, shape }, settings)))
    return cells.filter(({ name }) => settings.wants(name))
  },
}

// --- beside the tools ---

interface Command {
  name: string
  line: string[]
  /** Done before each round, and not measured. */
  before?(): Promise<void>
}

const dump = (pool: string, settings: Settings): Promise<Cell[]> =>
  beside(
    'dump',
    [
      { name: 'thinfs', line: [...THINFS, 'dump', pool] },
      { name: 'thin_dump', line: ['thin_dump', join(pool, 'metadata')] },
    ],
    settings,
  )

async function repair(
  disk: string,
  { template, shape }: { template: string; shape: Restored },
  settings: Settings,
): Promise<Cell[]> {
  const pool = join(disk, 'damaged')
  const output = join(disk, 'repaired')
  const makePool = async (): Promise<void> => {
    rmSync(pool, { recursive: true, force: true })
    await makeRestored(pool, template, shape)
  }
  await makePool()
  damage(template, dataIndexOf(loadConfig(join(pool, 'pool.yaml'))))
  const commands: Command[] = [
    { name: 'thinfs', line: [...THINFS, 'repair', pool], before: makePool },
    {
      name: 'thin_repair',
      line: ['thin_repair', '-i', template, '-o', output],
      async before() {
        rmSync(output, { force: true })
        sparseFile(output, METADATA_SIZE)
      },
    },
  ]
  return await beside('repair', commands, settings)
}

/** The metadata block of the root of the data map's index tree. */
function dataIndexOf(config: PoolConfig): number {
  const files = PoolFiles.open(config, true)
  try {
    return new MetadataView(files.metadata).superblock(null).dataSpaceMap.bitmapRoot
  } finally {
    files.close()
  }
}

function damage(file: string, block: number): void {
  const fd = openSync(file, 'r+')
  writeSync(
    fd,
    Buffer.alloc(METADATA_BLOCK_SIZE, 0xaa),
    0,
    METADATA_BLOCK_SIZE,
    block * METADATA_BLOCK_SIZE,
  )
  closeSync(fd)
}

/** Seconds and memory of thinfs and of a tool that does the same. */
async function beside(
  what: string,
  commands: readonly Command[],
  settings: Settings,
): Promise<Cell[]> {
  const memory: Cell['samples'] = Object.fromEntries(commands.map(({ name }) => [name, []]))
  const samples = await paired(commands, settings, async ({ name, line, before }) => {
    await before?.()
    const { seconds, megabytes } = await timed(line, settings.signal)
    memory[name]!.push(megabytes)
    return seconds
  })
  const tool = commands.find(({ name }) => name !== 'thinfs')!.name
  const name = `metadata/${what}`
  return [
    { name, unit: 's', samples, goals: [atMost(MAX_TIMES, 'thinfs', tool)] },
    {
      name: `${name}/memory`,
      unit: 'MB',
      samples: memory,
      goals: [atMost(MAX_MEGABYTES, 'thinfs')],
    },
  ]
}

/** Runs a command whose output nobody needs. */
async function timed(
  line: readonly string[],
  signal: AbortSignal,
): Promise<{ seconds: number; megabytes: number }> {
  const { stdout } = await exec('python3', ['-c', TIMED, ...line], { signal })
  const [seconds, kibibytes] = stdout.split(' ').map(Number)
  return { seconds: seconds!, megabytes: (kibibytes! * KIB) / 1e6 }
}

// --- two snapshots ---

async function differences(config: PoolConfig, size: number, settings: Settings): Promise<Cell[]> {
  const devIds = await makeSnapshots(config)
  const cell = async (
    what: string,
    call: (files: PoolFiles, roots: [number, number]) => Promise<void>,
    line: string[],
    most: number,
  ): Promise<Cell> => {
    const measureCall = async (): Promise<number> => {
      const files = PoolFiles.open(config, true)
      try {
        const { devices } = committedOf(files.metadata)
        const roots = devIds.map(devId => devices.get(devId)!.root) as [number, number]
        const begin = performance.now()
        await call(files, roots)
        return performance.now() - begin
      } finally {
        files.close()
      }
    }
    // Loads what it needs.
    await measureCall()
    const contenders = [{ name: 'call' }, { name: 'command' }]
    const samples = await paired(contenders, settings, async ({ name }) =>
      name === 'call' ? measureCall() : 1000 * (await timed(line, settings.signal)).seconds,
    )
    return { name: `metadata/${what}`, unit: 'ms', samples, goals: [atMost(most, 'call')] }
  }
  const { folder } = config
  const delta = await cell(
    'delta',
    async ({ metadata }, roots) => {
      const changes = [...changesBetween(metadata, roots, false)]
      mustBe(
        NR_CHANGED,
        changes.reduce((sum, { length }) => sum + length, 0),
      )
    },
    [...THINFS, 'delta', folder, 'older', 'newer'],
    50,
  )
  const send = await cell(
    'send',
    async ({ metadata, data }, [older, newer]) => {
      let sent = 0
      const source = {
        ...{ metadata, read: readFrom(data), blockSize: BLOCK, name: 'newer', size, root: newer },
        ...{ content: 'newer', resume: 0 },
        base: { name: 'older', size, root: older, content: 'older' },
      }
      const take = async ({ length }: Uint8Array): Promise<void> => {
        sent += length
      }
      await sendTo(source, take, { compress: true, onProgress: () => {} })
      // Random bytes cannot be compressed.
      mustBe(NR_CHANGED, Math.floor(sent / BLOCK))
    },
    [...THINFS, 'send', folder, 'newer', '--from', 'older'],
    100,
  )
  return [delta, send]
}

function mustBe(wanted: number, found: number): void {
  if (found !== wanted) throw new Error(`${found} blocks differ, wanted ${wanted}`)
}

/** Makes two snapshots between which blocks all over the volume were written. @returns their ids */
async function makeSnapshots(config: PoolConfig): Promise<number[]> {
  const { volumes, close } = await openPool(config)
  try {
    const older = await volumes.snapshot({ origin: 'huge', name: 'older' })
    // Streams have a name for its content from here on, as if it had been sent.
    const held = await volumes.hold({ names: ['older'], identify: 'older' })
    for (const { file } of held.volumes) {
      const hidden = file === null ? undefined : volumes.hidden.find(file)
      if (hidden !== undefined) await volumes.hidden.drop(hidden.devId)
    }
    const { device, entry } = volumes.find('huge')!
    const step = Math.floor(entry.size / BLOCK / NR_CHANGED)
    const content = Buffer.alloc(BLOCK)
    for (let i = 0; i < NR_CHANGED; i++) {
      randomFillSync(content)
      await device.write(i * step * BLOCK, BLOCK, content, 0)
    }
    const newer = await volumes.snapshot({ origin: 'huge', name: 'newer' })
    return [older.devId, newer.devId]
  } finally {
    await close()
  }
}
