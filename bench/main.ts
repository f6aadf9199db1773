/**
 * How near does thinfs come to what a userspace server can do at all, and how far ahead of
 * qemu-storage-daemon's export of a qcow2 is it?
 *
 * Every scenario measures its contenders in the same rounds, one after the other, and prints what
 * they reached, the ratios, and whether the goals hold. This measures and never fails for it.
 */
import { execFile } from 'node:child_process'
import { mkdtempSync, rmdirSync, rmSync } from 'node:fs'
import { freemem, tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs, promisify } from 'node:util'
import { GIB, MIB } from '../src/base/index.js'
import { SCATTERED, useScatteredMemory } from './memory.js'
import { cpuModel, printGoals, printLines, printTable } from './report.js'
import type { Cell, Place, Scenario, Settings } from './scenario.js'
import { cost } from './scenarios/cost.js'
import { depth } from './scenarios/depth.js'
import { disk } from './scenarios/disk.js'
import { dm } from './scenarios/dm.js'
import { fsync } from './scenarios/fsync.js'
import { loop } from './scenarios/loop.js'
import { metadata } from './scenarios/metadata.js'
import { mkfs } from './scenarios/mkfs.js'
import { provision } from './scenarios/provision.js'
import { remote } from './scenarios/remote.js'
import { snapshot } from './scenarios/snapshot.js'
import { stalls } from './scenarios/stalls.js'
import { throughput } from './scenarios/throughput.js'
import { tree } from './scenarios/tree.js'
import { workingSet } from './scenarios/working-set.js'

const exec = promisify(execFile)
const SCENARIOS: readonly Scenario[] = [
  throughput,
  loop,
  provision,
  snapshot,
  mkfs,
  tree,
  fsync,
  depth,
  workingSet,
  disk,
  remote,
  dm,
  cost,
  stalls,
  metadata,
]

const USAGE = `usage: npm run bench -- [--rounds N] [--seconds N] [--quick] [--only NAME]...
  --rounds   how often each cell is measured (5)
  --seconds  for how long each time (3)
  --quick    one round of one second
  --only     a cell, or a scenario:
${SCENARIOS.map(({ name, about }) => `             ${name.padEnd(12)} ${about}`).join('\n')}`

function parseSettings(signal: AbortSignal): { settings: Settings; scenarios: Scenario[] } {
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
  const { only } = values
  for (const wanted of only ?? []) {
    if (!SCENARIOS.some(({ name }) => wanted === name || wanted.startsWith(`${name}/`))) {
      throw new Error(`${wanted}: no such scenario`)
    }
  }
  return {
    settings: {
      rounds: number(values.rounds, values.quick ? 1 : 5),
      seconds: number(values.seconds, values.quick ? 1 : 3),
      quick: values.quick,
      signal,
      wants: cell => only?.some(name => cell === name || cell.startsWith(`${name}/`)) ?? true,
    },
    scenarios: SCENARIOS.filter(
      ({ name }) => only?.some(wanted => wanted === name || wanted.startsWith(`${name}/`)) ?? true,
    ),
  }
}

/** Runs `use` with folders in memory and on disk, which are gone afterwards. */
async function withPlace<T>(bytes: number, use: (place: Place) => Promise<T>): Promise<T> {
  const total = bytes > 0 ? bytes + SCATTERED : MIB
  if (freemem() < total) throw new Error(`needs ${total / GIB} GiB of free memory`)
  const memory = mkdtempSync(join(tmpdir(), 'thinfs-bench-memory-'))
  // Other than /tmp, it is hardly ever in memory.
  const disk = mkdtempSync('/var/tmp/thinfs-bench-disk-')
  try {
    await exec('mount', ['-t', 'tmpfs', '-o', `size=${total},mode=0700`, 'thinfs-bench', memory])
    try {
      if (bytes > 0) useScatteredMemory(memory)
      return await use({ memory, disk })
    } finally {
      await exec('umount', ['--lazy', memory])
    }
  } finally {
    rmdirSync(memory)
    rmSync(disk, { recursive: true })
  }
}

async function main(): Promise<void> {
  const interrupted = new AbortController()
  let wanted: { settings: Settings; scenarios: Scenario[] }
  try {
    wanted = parseSettings(interrupted.signal)
  } catch (err) {
    console.error(`${(err as Error).message}\n${USAGE}`)
    process.exitCode = 2
    return
  }
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.on(name, () => interrupted.abort(new Error(`stopped by ${name}`)))
  }
  console.log(`Node ${process.version}, ${cpuModel()}`)
  const all: Cell[] = []
  for (const scenario of wanted.scenarios) {
    const { name, about, memory, run } = scenario
    console.log(`\n${name}: ${about}`)
    const cells = await withPlace(memory, place => run(place, wanted.settings))
    if (scenario.print) scenario.print(cells)
    else printTable(cells)
    all.push(...cells)
  }
  console.log()
  printGoals(all)
  printLines(all)
}

main().catch((err: Error) => {
  console.error(err.message)
  process.exitCode = 1
})
