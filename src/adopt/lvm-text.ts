/**
 * LVM's text format, in which a physical volume carries the description of its volume group:
 * sections in braces, `key = value`, values that are numbers, strings or lists of these.
 * Source: lvm2, libdm/libdm-config.c; lvm.conf(5) has the same syntax.
 */
import { ThinfsError } from '../base/index.js'

export type LvmValue = string | number | (string | number)[]

/** The content of a section, by name. */
export interface LvmSection {
  values: Map<string, LvmValue>
  sections: Map<string, LvmSection>
}

/** Sections in each other: a volume group has three levels. */
const DEPTH_MAX = 16

const TOKEN =
  /(?:\s|#[^\n]*(?![^\n]))*(?:("(?:[^"\\]|\\.)*")|(-?\d+(?:\.\d+)?)|([A-Za-z0-9_.+-]+)|([{}=[\],]))/y

class Tokens {
  readonly #text: string
  #at = 0
  #next: string | null = null

  constructor(text: string) {
    this.#text = text
  }

  /** The next token, which stays; null at the end. */
  peek(): string | null {
    this.#next ??= this.#read()
    return this.#next
  }

  /** @param wanted what it has to be; default: anything */
  take(wanted?: string): string {
    const token = this.peek()
    this.#next = null
    if (token === null || (wanted !== undefined && token !== wanted)) {
      throw this.wrong(`${token ?? 'the end'}, where ${wanted ?? 'more'} is wanted`)
    }
    return token
  }

  wrong(what: string): ThinfsError {
    const line = this.#text.slice(0, this.#at).split('\n').length
    return new ThinfsError('METADATA_CORRUPT', `LVM's metadata, line ${line}: ${what}`)
  }

  #read(): string | null {
    TOKEN.lastIndex = this.#at
    const found = TOKEN.exec(this.#text)
    if (found === null) {
      if (/\S/.test(this.#text.slice(this.#at).replace(/#[^\n]*|\0/g, ''))) {
        throw this.wrong('cannot be read')
      }
      return null
    }
    this.#at = TOKEN.lastIndex
    return found[1] ?? found[2] ?? found[3] ?? found[4]!
  }
}

/** @throws METADATA_CORRUPT naming the line */
export function parseLvmText(text: string): LvmSection {
  const tokens = new Tokens(text)
  const root = readSection(tokens, 0)
  if (tokens.peek() !== null) throw tokens.wrong('a brace too many')
  return root
}

function readSection(tokens: Tokens, depth: number): LvmSection {
  if (depth > DEPTH_MAX) throw tokens.wrong(`sections deeper than ${DEPTH_MAX} levels`)
  const section: LvmSection = { values: new Map(), sections: new Map() }
  for (let name = tokens.peek(); name !== null && name !== '}'; name = tokens.peek()) {
    tokens.take()
    if (tokens.peek() === '{') {
      tokens.take('{')
      section.sections.set(name, readSection(tokens, depth + 1))
      tokens.take('}')
    } else {
      tokens.take('=')
      section.values.set(name, readValue(tokens))
    }
  }
  return section
}

function readValue(tokens: Tokens): LvmValue {
  if (tokens.peek() !== '[') return readScalar(tokens)
  tokens.take('[')
  const list: (string | number)[] = []
  while (tokens.peek() !== ']') {
    list.push(readScalar(tokens))
    if (tokens.peek() !== ']') tokens.take(',')
  }
  tokens.take(']')
  return list
}

function readScalar(tokens: Tokens): string | number {
  const token = tokens.take()
  if (token.startsWith('"')) return token.slice(1, -1).replaceAll(/\\(.)/gs, '$1')
  const number = Number(token)
  if (Number.isNaN(number)) throw tokens.wrong(`${token}, where a value is wanted`)
  return number
}
