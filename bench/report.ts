/** What was measured, as a table for people, lines for programs, and the goals. */
import { cpus } from 'node:os'
import Table from 'cli-table3'
import type { Cell, Goal } from './scenario.js'

/** Contenders that show what there is to be had. */
const BOUNDS: readonly string[] = [
  'limit-dev',
  'limit-spin',
  'limit-uring',
  'limit-fuse-native',
  'plain',
]

/** A row for each contender of each cell. */
export function printTable(cells: Cell[]): void {
  const head = ['cell', 'contender', 'median', '±', 'unit', 'thinfs is']
  const table = new Table({
    head,
    colAligns: ['left', 'left', 'right', 'right', 'left', 'right'],
    style: { head: [], border: [], compact: true },
  })
  for (const { name, unit, samples } of cells) {
    for (const [contender, values] of Object.entries(samples)) {
      const { thinfs } = samples
      const times = thinfs && contender !== 'thinfs' ? ratio(thinfs, values) : Number.NaN
      const is = Number.isFinite(times) ? `${times.toFixed(2)} ×` : ''
      const spread = `${spreadPercent(values)} %`
      table.push([name, contender, readable(median(values)), spread, unit, is])
    }
  }
  console.log(table.toString())
  console.log('Medians of the rounds; ± is half the range; ratios are medians of paired rounds.')
}

/** A table of other columns, for a scenario whose cells say little one by one. */
export function printRows(head: string[], rows: string[][]): void {
  const colAligns = head.map((_, i) => (i === 0 ? ('left' as const) : ('right' as const)))
  const table = new Table({ head, colAligns, style: { head: [], border: [], compact: true } })
  table.push(...rows)
  console.log(table.toString())
}

/** One line of JSON a cell. */
export function printLines(cells: Cell[]): void {
  const machine = { node: process.version, cpu: cpuModel() }
  for (const { name, unit, samples, goals } of cells) {
    const medians = Object.fromEntries(
      Object.entries(samples).map(([contender, values]) => [
        contender,
        { median: rounded(median(values)), spreadPercent: spreadPercent(values) },
      ]),
    )
    const reached = goals.map(goal => ({ ...goal, reached: rounded(reachedOf(goal, samples)) }))
    const rounds = Math.max(...Object.values(samples).map(values => values.length))
    console.log(
      JSON.stringify({ cell: name, unit, ...medians, goals: reached, rounds, ...machine }),
    )
  }
}

export function printGoals(cells: Cell[]): void {
  for (const { name, unit, samples, goals } of cells) {
    for (const goal of goals) {
      const reached = reachedOf(goal, samples)
      const { of, to, least = -Infinity, most = Infinity } = goal
      const holds = reached >= least && reached <= most ? 'holds ' : 'MISSED'
      const wanted = goal.least === undefined ? `at most ${most}` : `at least ${least}`
      const found =
        to === undefined ? `${readable(reached)} ${unit}` : `${reached.toFixed(2)} × ${to}`
      console.log(`${holds}  ${name}: ${of} ${found}, wanted ${wanted}${boundOf(goal, samples)}`)
    }
  }
}

/** What those reach that do nothing but move bytes, where a goal is measured by another. */
function boundOf({ to }: Goal, samples: Cell['samples']): string {
  if (to === undefined || to.startsWith('limit-')) return ''
  const reached = BOUNDS.filter(name => name !== to && samples[name] !== undefined).map(
    name => `${name} ${ratio(samples[name]!, samples[to]!).toFixed(2)}`,
  )
  return reached.length > 0 ? ` (${reached.join(', ')})` : ''
}

export function cpuModel(): string {
  const all = cpus()
  return `${all.length} × ${all[0]?.model.trim() ?? 'unknown'}`
}

function reachedOf({ of, to }: Goal, samples: Cell['samples']): number {
  return to === undefined ? median(samples[of]!) : ratio(samples[of]!, samples[to]!)
}

function median(samples: number[]): number {
  const sorted = samples.toSorted((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2
}

function spreadPercent(samples: number[]): number {
  const range = Math.max(...samples) - Math.min(...samples)
  return range === 0 ? 0 : Math.round((50 * range) / median(samples))
}

function ratio(samples: number[], others: number[]): number {
  return median(samples.map((sample, round) => sample / others[round]!))
}

/** Four digits say all that such figures are worth. */
const rounded = (value: number): number => Number(value.toPrecision(4))
const readable = (value: number): string => rounded(value).toLocaleString('en-US')
