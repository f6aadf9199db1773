// Goal: ARCHITECTURE.md says of each room which others it may import, and the linter enforces just
// that. Method: the lists of biome.json, which enforce it, against the page's table and the folders.
import { readdirSync, readFileSync } from 'node:fs'
import t from 'tap'

interface Override {
  includes: [string]
  linter: {
    rules: { style: { noRestrictedImports: { options: { patterns: [{ group: string[] }] } } } }
  }
}

/** `../../base/index.js` → `base`, `../native.js` → `native`, `../blocks/*.js` → `blocks`. */
const roomOf = (pattern: string): string =>
  pattern.replace(/^!(\.\.\/)+/, '').replace(/(\/index|\/\*)?\.js$/, '')

const { overrides } = JSON.parse(readFileSync('biome.json', 'utf8')) as { overrides: Override[] }
const enforced = new Map(
  overrides.map(({ includes: [path], linter }) => {
    const [all, ...allowed] = linter.rules.style.noRestrictedImports.options.patterns[0].group
    t.equal(all, '../**', `${path}: what is not named is refused`)
    return [path.replace(/^src\//, '').replace(/\*\*$/, ''), allowed.map(roomOf).sort().join(', ')]
  }),
)
const described = new Map(
  [...readFileSync('ARCHITECTURE.md', 'utf8').matchAll(/^\| `(\S+\/)` \|[^|]*\| ([^|]*) \|/gm)].map(
    ([, room, imports]) => [room!, imports === '–' ? '' : imports!],
  ),
)

t.test('every folder of src is a room with a list', async t => {
  const folders = readdirSync('src', { withFileTypes: true }).filter(entry => entry.isDirectory())
  for (const { name } of folders) t.ok(enforced.has(`${name}/`), `src/${name}`)
})

t.test('ARCHITECTURE.md says what the linter enforces', async t => {
  t.strictSame(Object.fromEntries(described), Object.fromEntries(enforced))
})
