/** The values that options may have, for completion: where they are few, or names of volumes. */
import { UNIT_LETTERS } from './columns.js'
import { FORMATS as DELTA_FORMATS } from './delta.js'
import { FORMATS as DUMP_FORMATS } from './dump.js'
import { FORMATS as IMAGE_FORMATS } from './export.js'
import { COLUMN_NAMES } from './list.js'

export type Values =
  | { kind: 'one'; words: readonly string[] }
  /** With commas between. */
  | { kind: 'list'; words: readonly string[] }
  | { kind: 'volume' }

const one = (words: readonly string[]): Values => ({ kind: 'one', words })
const list = (words: readonly string[]): Values => ({ kind: 'list', words })

const LEVELS = one(['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'])
const IMAGES = one(['raw', ...IMAGE_FORMATS])

/** By command and the long name of the option. */
const VALUES: Readonly<Record<string, Readonly<Record<string, Values>>>> = {
  list: {
    '--columns': list(COLUMN_NAMES),
    '--sort': list(COLUMN_NAMES),
    '--units': one(['h', ...UNIT_LETTERS]),
  },
  dump: { '--format': one(DUMP_FORMATS) },
  delta: { '--format': one(DELTA_FORMATS) },
  import: { '--format': IMAGES },
  export: { '--format': IMAGES },
  mount: {
    '--options': list(['allow_other', 'ro', 'noexec', 'noatime', 'sync', 'transport=uring']),
    '--log-level': LEVELS,
  },
  dm: { '--log-level': LEVELS },
  attach: { '--sector-size': one(['512', '1024', '2048', '4096']) },
  send: { '--from': { kind: 'volume' } },
}

/** Null where the option takes anything. */
export const valuesOf = (command: string, option: string): Values | null =>
  VALUES[command]?.[option] ?? null
