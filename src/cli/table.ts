/** Columns as lvs prints them: two blanks between, no lines. */
import Table from 'cli-table3'
import { visible } from './visible.js'

/** @param right indexes of columns that end flush, as numbers do */
export function table(rows: readonly (readonly string[])[], right: readonly number[] = []): string {
  const aligned = Array.from(rows[0] ?? [], (_, i) => (right.includes(i) ? 'right' : 'left'))
  const out = new Table({
    chars: Object.fromEntries(EDGES.map(edge => [edge, ''])),
    style: { head: [], border: [], 'padding-left': 0, 'padding-right': 2 },
    colAligns: aligned as ('left' | 'right')[],
  })
  out.push(...rows.map(row => row.map(visible)))
  return out.toString().replace(/ +$/gm, '')
}

const EDGES = [
  ...['top', 'top-mid', 'top-left', 'top-right', 'mid', 'mid-mid', 'left', 'left-mid'],
  ...['bottom', 'bottom-mid', 'bottom-left', 'bottom-right', 'right', 'right-mid', 'middle'],
]
