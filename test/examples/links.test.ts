// Goal: every link within the documentation leads somewhere. Method: markdown-it finds links and
// headings, github-slugger makes anchors of headings as GitHub does.
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import GithubSlugger from 'github-slugger'
import MarkdownIt from 'markdown-it'
import t from 'tap'

const ROOT = resolve(import.meta.dirname, '../..')
const markdown = new MarkdownIt({ html: true })

interface Page {
  links: string[]
  anchors: string[]
}

function read(path: string): Page {
  const tokens = markdown.parse(readFileSync(path, 'utf8'), {})
  const slugger = new GithubSlugger()
  const text = (i: number): string =>
    (tokens[i]!.children ?? []).map(({ content }) => content).join('')
  const anchors = tokens.flatMap(({ type }, i) =>
    type === 'heading_open' ? slugger.slug(text(i + 1)) : [],
  )
  const parts = tokens.flatMap(token => [token, ...(token.children ?? [])])
  const links = parts.flatMap(({ attrs }) =>
    (attrs ?? []).flatMap(([name, value]) => (name === 'href' || name === 'src' ? value : [])),
  )
  const ofHtml = parts
    .filter(({ type }) => type.startsWith('html_'))
    .flatMap(({ content }) => [...content.matchAll(/(?:src|srcset|href)="([^"]*)"/g)])
    .map(([, link]) => link!)
  return { links: [...links, ...ofHtml], anchors }
}

const files = [ROOT, join(ROOT, 'docs')].flatMap(folder =>
  readdirSync(folder)
    .filter(name => name.endsWith('.md'))
    .map(name => join(folder, name)),
)
const pages = new Map(files.map(path => [path, read(path)]))

t.test('links and anchors of README.md and docs/', async t => {
  let checked = 0
  for (const [path, { links }] of pages) {
    for (const link of links.filter(link => !/^[a-z]+:/.test(link))) {
      const [, to, anchor] = /^([^#]*)(?:#(.*))?$/.exec(decodeURI(link))!
      const target = to === '' ? path : join(dirname(path), to!)
      const where = `${path}: ${link}`
      if (!existsSync(target)) t.fail(where)
      if (anchor !== undefined) t.ok(pages.get(target)?.anchors.includes(anchor), where)
      checked++
    }
  }
  t.ok(checked > 50, `${checked} links`)
})
