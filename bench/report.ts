/** What was measured, as a table for people, lines for programs, and the goals. */
import { cpus } from 'node:os'
import Table from 'cli-table3'
import { type Load, unitOf } from './fio.js'
import type { ServerName } from './server.js'

/** A load's rates, one a round, in the same rounds for every server. */
export interface Cell {
  load: Load
  rates: Record<ServerName, number[]>
}

/** What thinfs has to reach, as a ratio to another server in the same rounds. */
const GOALS: Record<string, Partial<Record<ServerName, number>>> = {
  'randread-qd1': { 'limit-spin': 0.9, qemu: 2.5 },
  'randread-qd16': { 'limit-dev': 0.8, qemu: 3 },
  'randwrite-qd1': { 'limit-spin': 0.9, qemu: 2.5 },
  'randwrite-qd16': { 'limit-dev': 0.8, qemu: 3 },
  'read-1m': { 'limit-dev': 0.8, qemu: 3 },
  'write-1m': { 'limit-dev': 0.8, qemu: 1 },
}
const OTHERS = ['limit-dev', 'limit-spin', 'qemu'] as const satisfies ServerName[]

export function printTable(cells: Cell[]): void {
  const head = ['', 'unit', ...OTHERS, 'thinfs', ...OTHERS.map(other => `thinfs/${other}`)]
  const table = new Table({
    head,
    colAligns: head.map((_, column) => (column < 2 ? 'left' : 'right')),
    style: { head: [], border: [] },
  })
  for (const { load, rates } of cells) {
    table.push([
      load.name,
      unitOf(load),
      ...[...OTHERS.map(other => rates[other]), rates.thinfs].map(
        samples => `${thousands(median(samples))} ±${spreadPercent(samples)} %`,
      ),
      ...OTHERS.map(other => ratio(rates.thinfs, rates[other]).toFixed(2)),
    ])
  }
  console.log(table.toString())
  console.log('Medians of the rounds; ± is half the range; ratios are medians of paired rounds.')
}

/** One line of JSON a cell. */
export function printLines(cells: Cell[]): void {
  const machine = { node: process.version, cpu: cpuModel() }
  for (const { load, rates } of cells) {
    const median_ = Object.fromEntries(
      Object.entries(rates).map(([server, samples]) => [server, Math.round(median(samples))]),
    )
    const line = {
      bench: 'throughput',
      cell: load.name,
      unit: unitOf(load),
      ...median_,
      spreadPercent: spreadPercent(rates.thinfs),
      ratios: Object.fromEntries(
        OTHERS.map(other => [other, Number(ratio(rates.thinfs, rates[other]).toFixed(3))]),
      ),
      rounds: rates.thinfs.length,
      ...machine,
    }
    console.log(JSON.stringify(line))
  }
}

export function printGoals(cells: Cell[]): void {
  for (const { load, rates } of cells) {
    for (const [other, wanted] of Object.entries(GOALS[load.name] ?? {})) {
      const reached = ratio(rates.thinfs, rates[other as ServerName])
      const holds = reached >= wanted ? 'holds ' : 'MISSED'
      console.log(`${holds}  ${load.name}: ${reached.toFixed(2)} × ${other}, wanted ${wanted}`)
    }
  }
}

export function cpuModel(): string {
  const all = cpus()
  return `${all.length} × ${all[0]?.model.trim() ?? 'unknown'}`
}

function median(samples: number[]): number {
  const sorted = samples.toSorted((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2
}

function spreadPercent(samples: number[]): number {
  const range = Math.max(...samples) - Math.min(...samples)
  return Math.round((50 * range) / median(samples))
}

function ratio(samples: number[], others: number[]): number {
  return median(samples.map((sample, round) => sample / others[round]!))
}

function thousands(rate: number): string {
  return Math.round(rate).toLocaleString('en-US')
}
