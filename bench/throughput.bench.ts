/**
 * How near does thinfs come to what a userspace server can do at all, and how far ahead of
 * qemu-storage-daemon's export of a qcow2 is it?
 *
 * fio loads the file that each server shows, one after the other in every round so that whatever else
 * the machine does meets all of them. The data of all is in memory: what is compared is the way there.
 * limit-dev and limit-spin are C that does nothing else; see limit/limit-dev.c. This measures and
 * never fails for it.
 */
import { execFile } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmdirSync } from 'node:fs'
import { freemem, tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs, promisify } from 'node:util'
import { GIB } from '../src/base/index.js'
import { fill, LOADS, type Load, measure, verifyConcurrent, WrongData } from './fio.js'
import { type Cell, cpuModel, printGoals, printLines, printTable } from './report.js'
import { Server, type ServerName, VOLUME_SIZE } from './server.js'

const exec = promisify(execFile)
const SERVERS: readonly ServerName[] = ['limit-dev', 'limit-spin', 'qemu', 'thinfs']
/** The volumes, and metadata and what the kernel needs beside them. */
const MEMORY = (SERVERS.length + 1) * VOLUME_SIZE

const USAGE = `usage: throughput.bench.ts [--rounds N] [--seconds N] [--quick] [--only CELL]...
  --rounds   how often each cell is measured (5)
  --seconds  for how long each time (3)
  --quick    one round of one second
  --only     ${LOADS.map(load => load.name).join(', ')}`

interface Settings {
  rounds: number
  seconds: number
  loads: Load[]
}

function parseSettings(): Settings {
  const { values } = parseArgs({
    options: {
      rounds: { type: 'string' },
      seconds: { type: 'string' },
      quick: { type: 'boolean', default: false },
      only: { type: 'string', multiple: true },
    },
  })
  const number = (text: string | undefined, usual: number): number => {
    const value = text === undefined ? usual : Number(text)
    if (!Number.isInteger(value) || value < 1) throw new Error(`${text}: not a count`)
    return value
  }
  const loads = LOADS.filter(load => values.only?.includes(load.name) ?? true)
  for (const name of values.only ?? []) {
    if (!loads.some(load => load.name === name)) throw new Error(`${name}: no such cell`)
  }
  return {
    rounds: number(values.rounds, values.quick ? 1 : 5),
    seconds: number(values.seconds, values.quick ? 1 : 3),
    loads,
  }
}

/** Runs `use` with a folder in memory, which is gone afterwards. */
async function withMemory(use: (folder: string) => Promise<void>): Promise<void> {
  if (freemem() < MEMORY) throw new Error(`needs ${MEMORY / GIB} GiB of free memory`)
  const folder = mkdtempSync(join(tmpdir(), 'thinfs-bench-'))
  try {
    await exec('mount', ['-t', 'tmpfs', '-o', `size=${MEMORY},mode=0700`, 'thinfs-bench', folder])
    try {
      await use(folder)
    } finally {
      await exec('umount', ['--lazy', folder])
    }
  } finally {
    rmdirSync(folder)
  }
}

/** Runs `use` with all servers up and their volumes written, and stops them afterwards. */
async function withServers(
  folder: string,
  signal: AbortSignal,
  use: (servers: Server[]) => Promise<void>,
): Promise<void> {
  const servers: Server[] = []
  try {
    for (const name of SERVERS) {
      const own = join(folder, name)
      mkdirSync(own)
      signal.throwIfAborted()
      const server = await Server.start(name, own)
      servers.push(server)
      await checkServer(server, signal)
    }
    await use(servers)
  } catch (err) {
    if (!signal.aborted) for (const { name, output } of servers) console.error(`${name}: ${output}`)
    throw err
  } finally {
    await Promise.all(servers.map(server => server.stop()))
  }
}

/**
 * Writes the whole volume, so that it is fully mapped, and makes sure that a server does not win by
 * losing data. qemu-storage-daemon 7.2 does with concurrent writes; there is no other to compare with.
 * @throws WrongData
 */
async function checkServer({ name, file }: Server, signal: AbortSignal): Promise<void> {
  await fill(file, signal)
  try {
    await verifyConcurrent(file, signal)
    console.log(`${name}: reads back what was written`)
  } catch (err) {
    if (!(err instanceof WrongData) || name !== 'qemu') throw err
    console.log(`${name}: does NOT read back what was written by concurrent requests`)
  }
}

async function run(settings: Settings, servers: Server[], signal: AbortSignal): Promise<Cell[]> {
  const cells = settings.loads.map(
    (load): Cell => ({ load, rates: { 'limit-dev': [], 'limit-spin': [], qemu: [], thinfs: [] } }),
  )
  for (let round = 0; round < settings.rounds; round++) {
    for (const { load, rates } of cells) {
      for (const server of servers) {
        const rate = await measure(server.file, load, settings.seconds, signal)
        rates[server.name].push(rate)
      }
    }
    console.error(`round ${round + 1} of ${settings.rounds}`)
  }
  return cells
}

async function main(): Promise<void> {
  let settings: Settings
  try {
    settings = parseSettings()
  } catch (err) {
    console.error(`${(err as Error).message}\n${USAGE}`)
    process.exitCode = 2
    return
  }
  const interrupted = new AbortController()
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.on(name, () => interrupted.abort(new Error(`stopped by ${name}`)))
  }
  const { signal } = interrupted
  await withMemory(folder =>
    withServers(folder, signal, async servers => {
      const cells = await run(settings, servers, signal)
      console.log(`Node ${process.version}, ${cpuModel()}`)
      printTable(cells)
      printGoals(cells)
      printLines(cells)
    }),
  )
}

main().catch((err: Error) => {
  console.error(err.message)
  process.exitCode = 1
})
