import type { Layout } from '../../src/base/index.js'

/** A layout as the Markdown table that docs/FORMAT.md has. */
export function layoutTable(
  layout: Pick<Layout<never>, 'name' | 'size'> & { fields: object },
): string {
  const rows = Object.entries(layout.fields as Record<string, readonly [number, string, string]>)
  return [
    `**${layout.name}**, ${layout.size} bytes`,
    '',
    '| offset | field | type | meaning |',
    '|---|---|---|---|',
    ...rows.map(
      ([name, [offset, type, meaning]]) => `| ${offset} | ${name} | ${type} | ${meaning} |`,
    ),
  ].join('\n')
}
