import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { dirname, join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { promisify } from 'node:util'
import { GIB, KIB, MIB, SECTOR_SIZE, TIB } from '../../src/base/index.js'
import { servingPid } from '../engine.js'
import { fill, type Load, measure } from '../fio.js'
import { fsyncLatencyDuring, readLatencyDuring } from '../latency.js'
import { printRows } from '../report.js'
import { BLOCK, type Entry, makeRestored, restoreMetadata, scattered } from '../restored-pool.js'
import { atMost, type Cell, type Goal, type Scenario, type Settings } from '../scenario.js'
import { type Contender, mountPlan, runThinfs, type Server, withServers } from '../servers.js'

const exec = promisify(execFile)

const HUGE = TIB
/** Of the volumes that are read and written all the time. */
const SMALL = 64 * MIB
const LARGE_BLOCK = 16 * MIB
/** A volume all of whose blocks are past a place in the data. */
const HIGH = 2 * GIB
const HIGH_BEGIN = 8 * GIB
/** A terabyte that begins there: as much of it is past the end of a smaller pool. */
const FAR_BEGIN = 16 * GIB
const NR_MANY = 10_000
const NR_COMMANDS = 1000
/** What is preallocated, and copied. */
const PART = 100 * GIB
/** How long an activity goes on that is over in no time. */
const LEAST_MS = 3000

/** What goes on while others read and write. */
interface Activity {
  name: string
  /** Done before, and not measured. */
  before?: (server: Server, settings: Settings) => Promise<void>
  act(server: Server, settings: Settings): Promise<void>
  /** Over soon: done again and again for LEAST_MS. */
  repeated?: boolean
}

interface Pool {
  contender: Contender
  activities: readonly Activity[]
}

/**
 * A volume of 1 TiB, all of it mapped in runs of eight blocks and shared with nobody; ten thousand
 * volumes; blocks of 16 MiB. While each activity goes on, somebody reads another volume, 4 KiB at a
 * time, and somebody writes to a third and calls fsync. `alone` is what the two have when nothing
 * else goes on. What was mapped by thin_restore is a hole of the data file: to write it would take
 * hours. The blocks of 16 MiB are written.
 */
export const stalls: Scenario = {
  name: 'stalls',
  about: "what others wait while one has much done, on this machine's disk",
  memory: 0,
  async run({ disk }, settings) {
    const cells: Cell[] = []
    let aloneMs = Number.NaN
    for (const { contender, activities } of POOLS) {
      const wanted = activities.filter(
        ({ name }) => name === ALONE.name || settings.wants(`stalls/${name}`),
      )
      if (wanted.every(activity => activity === ALONE)) continue
      await withServers([contender], disk, settings.signal, async ([server]) => {
        for (const name of ['reader', 'writer']) {
          await fill(join(dirname(server!.file), name), settings.signal)
        }
        for (const activity of wanted) {
          const measured = await during(activity, server!, settings)
          if (activity === ALONE) aloneMs = measured.fsyncMs
          if (activity === ALONE && cells.length > 0) continue
          cells.push(...cellsOf(activity.name, measured, aloneMs))
        }
      })
    }
    return cells
  },
  print(cells) {
    const head = ['beside', 'read p99.9', 'read worst', 'write + fsync', 'memory', 'it took']
    const rows = new Map<string, string[]>()
    for (const { name, unit, samples } of cells) {
      const [, activity] = name.split('/') as [string, string]
      const row = rows.get(activity) ?? [activity]
      for (const [value] of Object.values(samples)) row.push(`${value!.toPrecision(3)} ${unit}`)
      rows.set(activity, row)
    }
    printRows(head, [...rows.values()])
  },
}

interface Measured {
  p999Ms: number
  worstMs: number
  fsyncMs: number
  peakMegabytes: number
  tookSeconds: number
}

async function during(
  { name, before, act, repeated }: Activity,
  server: Server,
  settings: Settings,
): Promise<Measured> {
  const { signal } = settings
  const folder = dirname(server.file)
  await before?.(server, settings)
  const pid = await servingPid(server)
  // Its largest size so far is as of now (proc(5)).
  writeFileSync(`/proc/${pid}/clear_refs`, '5')
  const begun = performance.now()
  const elapsed = (): number => performance.now() - begun
  const [read, [fsyncMs, took]] = await readLatencyDuring(join(folder, 'reader'), signal, () =>
    fsyncLatencyDuring(join(folder, 'writer'), signal, async () => {
      await setTimeout(500)
      const began = performance.now()
      do await act(server, settings)
      while (repeated && elapsed() < LEAST_MS)
      const took = performance.now() - began
      // What was done is committed within a second, and that is part of it.
      if (name !== ALONE.name) await setTimeout(Math.max(1500, LEAST_MS - elapsed()))
      return took
    }),
  )
  const peak = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))!
  const peakMegabytes = (Number(peak[1]) * KIB) / 1e6
  return { ...read, fsyncMs, peakMegabytes, tookSeconds: took / 1000 }
}

function cellsOf(activity: string, measured: Measured, aloneMs: number): Cell[] {
  const name = `stalls/${activity}`
  const { p999Ms, worstMs, fsyncMs, peakMegabytes, tookSeconds } = measured
  const cell = (what: string, unit: string, samples: Record<string, number>, goals: Goal[]) => ({
    name: `${name}/${what}`,
    unit,
    samples: Object.fromEntries(Object.entries(samples).map(([key, value]) => [key, [value]])),
    goals,
  })
  return [
    cell('read', 'ms', { 'p99.9': p999Ms, worst: worstMs }, [
      atMost(10, 'p99.9'),
      atMost(30, 'worst'),
    ]),
    cell('fsync', '× alone', { thinfs: fsyncMs / aloneMs }, [atMost(2, 'thinfs')]),
    cell('memory', 'MB', { thinfs: peakMegabytes }, [atMost(300, 'thinfs')]),
    cell('took', 's', { thinfs: tookSeconds }, []),
  ]
}

// --- what goes on ---

const pool = (server: Server): string => join(server.folder, 'pool')
const inMount = (server: Server, name: string): string => join(dirname(server.file), name)
const command =
  (...args: string[]) =>
  async (server: Server): Promise<void> => {
    await runThinfs(args[0]!, pool(server), ...args.slice(1))
  }
/** Runs `program`, Python, on the file of a volume: Node has no call for what it does. */
const python = async (program: string, ...args: string[]): Promise<void> => {
  await exec('python3', ['-c', program, ...args])
}

const ALONE: Activity = { name: 'alone', act: () => setTimeout(LEAST_MS) }

const LOOKING: readonly Activity[] = [
  ALONE,
  { name: 'list', act: command('list'), repeated: true },
  { name: 'status', act: command('status'), repeated: true },
  { name: 'check', act: command('check') },
  { name: 'check-deep', act: command('check', '--deep') },
  {
    name: 'seek-hole',
    act: server =>
      python(
        'import os,sys;os.lseek(os.open(sys.argv[1],0),0,os.SEEK_HOLE)',
        inMount(server, 'huge'),
      ),
    repeated: true,
  },
  {
    name: 'getfattr',
    async act(server) {
      await exec('getfattr', ['-d', inMount(server, 'huge')])
    },
    repeated: true,
  },
  { name: 'commands', act: server => manyCommands(server), repeated: true },
]

const REMOVE: Activity = { name: 'remove', act: command('remove', 'huge', '--yes') }
const DISCARD: Activity = {
  name: 'discard',
  async act(server) {
    const script =
      'import os,sys,ctypes as c;l=c.CDLL(None,use_errno=True);' +
      'f=os.open(sys.argv[1],os.O_RDWR);' +
      'r=l.fallocate(f,3,c.c_int64(0),c.c_int64(int(sys.argv[2])));sys.exit(0 if r==0 else str(c.get_errno()))'
    await python(script, inMount(server, 'huge'), String(HUGE))
  },
}
const RELEASE: Activity = {
  name: 'release-snap',
  async before(server) {
    await command('message', 'reserve_metadata_snap')(server)
    // Now the metadata snapshot is the last that has its mappings.
    await command('remove', 'huge', '--yes')(server)
  },
  act: command('message', 'release_metadata_snap'),
}

/** Moves holes: all of it is work on metadata. */
const SHRINK: Activity = {
  name: 'shrink',
  act: command('shrink', '--data', String(HUGE + FAR_BEGIN / 8)),
}
/** Moves data that the page cache has. */
const SHRINK_DATA: Activity = {
  name: 'shrink-data',
  async before(server, { signal }) {
    await fill(inMount(server, 'high'), signal)
    await exec('sync', [inMount(server, 'high')])
  },
  act: command('shrink', '--data', String(HIGH_BEGIN)),
}

let made = 0
let renamed = 0
let resized = 0
const MANY: readonly Activity[] = [
  {
    name: 'snapshot-many',
    act: server => command('snapshot', 'v0', `s${made++}`)(server),
    repeated: true,
  },
  {
    name: 'rename-many',
    before: server => command('rename', 'v1', `r${renamed}`)(server),
    act: server => command('rename', `r${renamed}`, `r${++renamed}`)(server),
    repeated: true,
  },
  {
    name: 'resize-many',
    act: server => command('resize', 'v2', String(GIB + SECTOR_SIZE * resized++))(server),
    repeated: true,
  },
  { name: 'list-many', act: command('list'), repeated: true },
  {
    name: 'preallocate',
    async act(server) {
      await exec('fallocate', ['-l', String(PART), inMount(server, 'target')])
    },
  },
  {
    name: 'copy-range',
    async act(server) {
      const script =
        'import os,sys\n' +
        'a=os.open(sys.argv[1],os.O_RDWR);b=os.open(sys.argv[2],os.O_RDWR);at=0;n=int(sys.argv[3])\n' +
        'while at<n:\n at+=os.copy_file_range(a,b,n-at,at,at)'
      await python(script, inMount(server, 'target'), inMount(server, 'copy'), String(PART))
    },
  },
]

const BREAK_SHARING: Activity = {
  name: 'unshare-16m',
  async before(server, { signal }) {
    await fill(inMount(server, 'huge'), signal)
    await exec('sync', [inMount(server, 'huge')])
    await command('snapshot', 'huge', 'snapshot')(server)
  },
  async act(server, { signal }) {
    const load: Load = {
      name: 'unshare',
      rw: 'write',
      blockSize: 4 * KIB,
      queueDepth: 1,
      skip: LARGE_BLOCK - 4 * KIB,
    }
    await measure(inMount(server, 'huge'), load, LEAST_MS / 1000, signal)
  },
}

/**
 * Sends as many commands to the control socket as there is time to write, and reads the answers.
 */
async function manyCommands(server: Server): Promise<void> {
  const connections = Array.from({ length: NR_COMMANDS }, async (_, i) => {
    const socket = connect(join(pool(server), 'control.sock'))
    await once(socket, 'connect')
    socket.write(`${JSON.stringify({ jsonrpc: '2.0', id: i, method: 'status' })}\n`)
    for await (const chunk of socket) if (String(chunk).includes('\n')) break
    socket.destroy()
  })
  await Promise.allSettled(connections)
}

// --- the pools ---

/** A pool of which thin_restore makes the metadata, once for all that have its name. */
function restored(
  name: string,
  blockSize: number,
  dataSize: number,
  entries: readonly Entry[],
): Contender {
  return {
    name,
    async prepare(folder) {
      const shape = { blockSize, dataSize, entries }
      const template = join(dirname(folder), `${name.split('-')[0]}.metadata`)
      if (!existsSync(template)) await restoreMetadata(template, shape)
      await makeRestored(join(folder, 'pool'), template, shape)
      return mountPlan(folder)
    },
  }
}

const SMALL_ENTRIES: readonly Entry[] = [
  { name: 'reader', size: SMALL },
  { name: 'writer', size: SMALL },
]
const huge = (name: string): Contender =>
  restored(name, BLOCK, 2 * HUGE, [
    { name: 'huge', size: HUGE, runs: scattered(HUGE, BLOCK) },
    ...SMALL_ENTRIES,
  ])
const far = restored('far', BLOCK, 2 * HUGE, [
  { name: 'huge', size: HUGE, runs: scattered(HUGE, BLOCK, FAR_BEGIN) },
  ...SMALL_ENTRIES,
])
const many = restored('many', BLOCK, TIB, [
  ...SMALL_ENTRIES,
  { name: 'target', size: PART },
  { name: 'copy', size: PART },
  ...Array.from({ length: NR_MANY }, (_, i) => ({ name: `v${i}`, size: GIB })),
])
const large = restored('large', LARGE_BLOCK, TIB, [
  { name: 'huge', size: 4 * GIB },
  ...SMALL_ENTRIES,
])

const high = restored('high', BLOCK, HIGH_BEGIN + HIGH, [
  {
    name: 'high',
    size: HIGH,
    runs: scattered(HIGH, BLOCK, HIGH_BEGIN),
  },
  ...SMALL_ENTRIES,
])

const POOLS: readonly Pool[] = [
  { contender: huge('huge'), activities: LOOKING },
  { contender: huge('huge-remove'), activities: [ALONE, REMOVE] },
  { contender: huge('huge-discard'), activities: [ALONE, DISCARD] },
  { contender: huge('huge-release'), activities: [ALONE, RELEASE] },
  { contender: far, activities: [ALONE, SHRINK] },
  { contender: high, activities: [ALONE, SHRINK_DATA] },
  { contender: many, activities: [ALONE, ...MANY] },
  { contender: large, activities: [ALONE, BREAK_SHARING] },
]
