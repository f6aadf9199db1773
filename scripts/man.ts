/**
 * Manual pages, made of what `--help` prints and what pool.yaml may hold:
 * thinfs(8), one a command, pool.yaml(5), in mdoc(7).
 *
 *   node --import=tsx scripts/man.ts FOLDER      writes FOLDER/man5 and FOLDER/man8
 */
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Command } from 'commander'
import { commandLine } from '../src/cli/main.js'
import { newConfig, renderConfig } from '../src/config/index.js'
import { POOL_YAML } from '../src/config/schema.js'

const [folder] = process.argv.slice(2)
if (folder === undefined) throw new Error('which folder?')

const date = new Date(Number(process.env.SOURCE_DATE_EPOCH ?? Date.now() / 1000) * 1000)
const DATE = `${date.toLocaleString('en', { month: 'long', timeZone: 'UTC' })} ${date.getUTCDate()}, ${date.getUTCFullYear()}`

/** As mdoc wants text: no line begins with a dot or a quote, and backslashes are themselves. */
const text = (plain: string): string =>
  plain
    .replaceAll('\\', '\\e')
    // A sentence ends with its line, or mdoc takes it for an abbreviation.
    .split(/\n|(?<=[.!?]\)?) +/)
    .map(line => line.trim())
    .filter(line => line !== '')
    .map(line => line.replace(/^(['.])/, '\\&$1'))
    .join('\n')

/** A line of a macro's arguments, of which none is a macro itself. */
const argument = (plain: string): string =>
  `"${plain.replaceAll('\\', '\\e').replaceAll('"', '""')}"`

const literal = (lines: string): string =>
  `.Bd -literal -offset indent\n${lines
    .replaceAll('\\', '\\e')
    .replace(/^(['.])/gm, '\\&$1')
    .trimEnd()}\n.Ed`

const item = (head: string, body: string): string =>
  `.It Cm ${argument(head)}\n${text(body)}`.trimEnd()

const list = (items: string[]): string => `.Bl -tag -width Ds\n${items.join('\n')}\n.El`

const header = (title: string, section: number, name: string, what: string): string =>
  `.Dd ${DATE}
.Dt ${title.toUpperCase()} ${section}
.Os thinfs
.Sh NAME
.Nm ${name}
.Nd ${what.replace(/\.$/, '')}`

/** The paragraphs that follow the lists of a help text; its example is a section of its own. */
function afterHelp(command: Command): { paragraphs: string[]; example: string } {
  let printed = ''
  command.configureOutput({ writeOut: part => (printed += part) }).outputHelp()
  const rest = printed.slice(
    printed.indexOf(command.helpInformation().trimEnd().split('\n').at(-1)!),
  )
  const [, ...blocks] = rest.split(/\n\n/)
  const isExample = (block: string): boolean => block.startsWith('Example:\n')
  const example = blocks.find(isExample)?.replace(/^Example:\n/, '') ?? ''
  return {
    paragraphs: blocks.filter(block => !isExample(block) && block.trim() !== ''),
    example: example.replace(/^ {2}/gm, ''),
  }
}

/** A paragraph of help: lines that are indented are commands. */
const paragraph = (block: string): string => {
  const lines = block.split('\n')
  const isCode = (line: string): boolean => /^ {2,}/.test(line)
  const prose = lines.filter(line => !isCode(line)).join('\n')
  const code = lines
    .filter(isCode)
    .map(line => line.trim())
    .join('\n')
  return `.Pp\n${text(prose)}${code === '' ? '' : `\n${literal(code)}`}`
}

const sentence = (words: string): string =>
  words === '' || /[.:]$/.test(words) ? words : `${words}.`

/** A word of commander's usage: <POOL>, [NAME...]. */
function synopsis(word: string): string {
  const [, bracket, name, many] = /^([<[])(.*?)(\.\.\.)?[>\]]$/.exec(word)!
  return `.${bracket === '[' ? 'Op ' : ''}Ar ${argument(name!)}${many ? ' ...' : ''}`
}

function pageOf(command: Command): string {
  const help = command.createHelp()
  const name = `thinfs-${command.name()}`
  const { paragraphs, example } = afterHelp(command)
  const [first] = command.description().split(/(?<=[.;:]) (?=[A-Z])/)
  const args = command.registeredArguments.filter(({ description }) => description !== '')
  return [
    header(name, 8, name, text(first!).replaceAll('\n', ' ')),
    '.Sh SYNOPSIS',
    `.Nm thinfs ${command.name()}`,
    ...command.usage().split(' ').map(synopsis),
    '.Sh DESCRIPTION',
    text(command.description()),
    ...paragraphs.map(paragraph),
    ...(args.length === 0
      ? []
      : [
          '.Ss Arguments',
          list(
            args.map(arg => item(help.argumentTerm(arg), sentence(help.argumentDescription(arg)))),
          ),
        ]),
    '.Ss Options',
    list(
      help
        .visibleOptions(command)
        .map(option => item(help.optionTerm(option), sentence(help.optionDescription(option)))),
    ),
    ...(example === '' ? [] : ['.Sh EXAMPLES', literal(example)]),
    '.Sh SEE ALSO',
    '.Xr pool.yaml 5 ,\n.Xr thinfs 8',
  ].join('\n')
}

function mainPage(program: Command): string {
  const help = program.createHelp()
  const { paragraphs, example } = afterHelp(program)
  return [
    header('thinfs', 8, 'thinfs', 'thin volumes as files'),
    '.Sh SYNOPSIS',
    '.Nm thinfs',
    '.Ar command',
    '.Op Ar argument ...',
    '.Sh DESCRIPTION',
    text(program.description()),
    'A pool is two files, data and metadata, and every thin volume in it is a file in the folder where\nthe pool is mounted.',
    ...paragraphs.map(paragraph),
    '.Ss Commands',
    list(
      program.commands.map(
        command => `.It Xr thinfs-${command.name()} 8\n${text(command.description())}`,
      ),
    ),
    '.Ss Options',
    list(
      help
        .visibleOptions(program)
        .map(option => item(help.optionTerm(option), sentence(help.optionDescription(option)))),
    ),
    '.Sh EXAMPLES',
    literal(example),
    '.Sh SEE ALSO',
    '.Xr pool.yaml 5 ,\n.Xr losetup 8 ,\n.Xr mount 8',
  ].join('\n')
}

type Type = {
  _zod: { def: Definition }
  meta?: () => { allowed?: string; said?: string } | undefined
}
interface Definition {
  type: string
  innerType?: Type
  valueType?: Type
  element?: Type
  shape?: Record<string, Type>
}

/** A key of pool.yaml: what it may hold, and what the schema says that it is. */
interface Key {
  path: string
  allowed: string
  said: string
}

/**
 * Each key below `type`. @param before what was said of the key where `type` is a part of its type
 */
function keysOf(type: Type, path: string, before = ''): Key[] {
  const { innerType, valueType, element, shape } = type._zod.def
  const { allowed = '', said = before } = type.meta?.() ?? {}
  if (innerType !== undefined) return keysOf(innerType, path, said)
  if (valueType !== undefined) return keysOf(valueType, `${path}.NAME`, said)
  if (element !== undefined) return keysOf(element, `${path}[]`, said)
  if (shape === undefined) return [{ path, allowed, said }]
  const below = Object.entries(shape).flatMap(([key, type]) =>
    keysOf(type, path === '' ? key : `${path}.${key}`),
  )
  return path === '' ? below : [{ path, allowed: '', said }, ...below]
}

/** The comment that a new pool.yaml has for each key, and the text of the key there. */
function commentsOf(yaml: string): Map<string, { said: string; shown: string }> {
  const blocks = yaml.split('\n\n').map(block => {
    const lines = block.split('\n')
    const isKey = lines.findIndex(line => /^\w+:/.test(line))
    // One without a default stands in a comment of its own, below what it is.
    const at = isKey >= 0 ? isKey : lines.findLastIndex(line => /^# \w+:/.test(line))
    const key = /^(?:# )?(\w+):/.exec(lines[at] ?? '')?.[1] ?? ''
    const said = lines.slice(0, at).map(line => line.replace(/^# ?/, ''))
    return [key, { said: said.join('\n'), shown: lines.slice(at).join('\n') }] as const
  })
  return new Map(blocks)
}

function configPage(): string {
  const config = newConfig('/srv/example/pool.yaml', {
    pool: 'example',
    dataSize: 100 * 2 ** 30,
    metadataSize: 'auto',
    volumes: {},
  })
  const yaml = renderConfig(config)
  const comments = commentsOf(yaml)
  const items = keysOf(POOL_YAML as unknown as Type, '').map(
    ({ path, allowed, said: bySchema }) => {
      const { said = bySchema } = comments.get(path.replace(/[.]NAME$/, '')) ?? {}
      return item(
        path,
        [sentence(said), allowed === '' ? '' : `Allowed: ${sentence(allowed)}`]
          .filter(line => line !== '.')
          .join('\n'),
      )
    },
  )
  return [
    header('pool.yaml', 5, 'pool.yaml', 'what a pool of thinfs is'),
    '.Sh DESCRIPTION',
    'A YAML file, which\n.Xr thinfs-init 8\nwrites.\nPaths count from its folder.\nA key that is not listed here is refused, with its line and what is allowed.',
    '.Ss Keys',
    list(items),
    '.Sh EXAMPLES',
    'As\n.Xr thinfs-init 8\nwrites it, with all defaults:',
    literal(yaml),
    '.Sh SEE ALSO',
    '.Xr thinfs 8 ,\n.Xr thinfs-extend 8 ,\n.Xr thinfs-init 8 ,\n.Xr thinfs-set 8',
  ].join('\n')
}

const program = commandLine()
const pages: [name: string, page: string][] = [
  ['man8/thinfs.8', mainPage(program)],
  ...program.commands.map((command): [string, string] => [
    `man8/thinfs-${command.name()}.8`,
    pageOf(command),
  ]),
  ['man5/pool.yaml.5', configPage()],
]
for (const section of ['man5', 'man8']) mkdirSync(join(folder, section), { recursive: true })
for (const [name, page] of pages) writeFileSync(join(folder, name), `${page}\n`)
