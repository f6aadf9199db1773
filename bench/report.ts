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

/** thinfs/qemu that is wanted; elsewhere it has to be ahead. */
const GOAL_VS_QEMU: Record<string, number> = {
  'randread-qd16': 2.5,
  'randwrite-qd16': 2.5,
  'read-1m': 2.5,
}

export function printTable(cells: Cell[]): void {
  const head = ['', 'unit', 'limit-dev', 'qemu', 'thinfs', 'thinfs/limit-dev', 'thinfs/qemu']
  const table = new Table({
    head,
    colAligns: head.map((_, column) => (column < 2 ? 'left' : 'right')),
    style: { head: [], border: [] },
  })
  for (const { load, rates } of cells) {
    table.push([
      load.name,
      unitOf(load),
      ...[rates['limit-dev'], rates.qemu, rates.thinfs].map(
        samples => `${thousands(median(samples))} ±${spreadPercent(samples)} %`,
      ),
      ratio(rates.thinfs, rates['limit-dev']).toFixed(2),
      ratio(rates.thinfs, rates.qemu).toFixed(2),
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
      vsLimit: Number(ratio(rates.thinfs, rates['limit-dev']).toFixed(3)),
      vsQemu: Number(ratio(rates.thinfs, rates.qemu).toFixed(3)),
      rounds: rates.thinfs.length,
      ...machine,
    }
    console.log(JSON.stringify(line))
  }
}

export function printGoals(cells: Cell[]): void {
  for (const { load, rates } of cells) {
    const wanted = GOAL_VS_QEMU[load.name] ?? 1
    const reached = ratio(rates.thinfs, rates.qemu)
    const holds = reached >= wanted ? 'holds ' : 'MISSED'
    console.log(`${holds}  ${load.name}: ${reached.toFixed(2)} × qemu, wanted ${wanted}`)
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
