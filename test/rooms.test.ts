// Goal: ARCHITECTURE.md says of each room which others it may import, and the linter enforces just
// that; what it names is there. Method: the lists of biome.json, which enforce it, against the
// page's table and the folders; each file and member that the page names against src.
import { existsSync, readdirSync, readFileSync } from 'node:fs'
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

const page = readFileSync('ARCHITECTURE.md', 'utf8')
const { overrides } = JSON.parse(readFileSync('biome.json', 'utf8')) as { overrides: Override[] }
const enforced = new Map(
  overrides.map(({ includes: [path], linter }) => {
    const [all, ...allowed] = linter.rules.style.noRestrictedImports.options.patterns[0].group
    t.equal(all, '../**', `${path}: what is not named is refused`)
    return [path.replace(/^src\//, '').replace(/\*\*$/, ''), allowed.map(roomOf).sort().join(', ')]
  }),
)
const described = new Map(
  [...page.matchAll(/^\| `(\S+\/)` \|[^|]*\| ([^|]*) \|/gm)].map(([, room, imports]) => [
    room!,
    imports === '–' ? '' : imports!,
  ]),
)

const sources = readdirSync('src', { recursive: true, encoding: 'utf8' })
  .filter(path => path.endsWith('.ts'))
  .map(path => ({ path, text: readFileSync(`src/${path}`, 'utf8') }))

t.test('ARCHITECTURE.md names files and functions that are there', async t => {
  const files = [...page.matchAll(/`([\w/-]+\.ts)`/g)].map(([, path]) => path!)
  t.ok(files.length > 40, `${files.length} files`)
  for (const file of new Set(files)) {
    const isThere = ({ path }: { path: string }): boolean => `/${path}`.endsWith(`/${file}`)
    t.ok(sources.some(isThere) || existsSync(file), file)
  }
  const members = [...page.matchAll(/`([A-Z]\w+)\.(#?\w+)`/g)]
  t.ok(members.length > 8, `${members.length} members`)
  for (const [name, owner, member] of members) {
    const declares = new RegExp(`\\b(class|interface) ${owner}\\b[^]*^  (\\w+ )*${member}\\b`, 'm')
    t.ok(
      sources.some(({ text }) => declares.test(text)),
      name,
    )
  }
})

t.test('every folder of src is a room with a list', async t => {
  const folders = readdirSync('src', { withFileTypes: true }).filter(entry => entry.isDirectory())
  for (const { name } of folders) t.ok(enforced.has(`${name}/`), `src/${name}`)
})

t.test('ARCHITECTURE.md says what the linter enforces', async t => {
  t.strictSame(Object.fromEntries(described), Object.fromEntries(enforced))
})
