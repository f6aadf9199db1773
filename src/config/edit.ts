/**
 * Values in a pool.yaml that people wrote are replaced one by one: the rest of the file stays, byte
 * for byte, comments and all.
 */
import { isDeepStrictEqual } from 'node:util'
import { isScalar, parseDocument } from 'yaml'
import { ThinfsError } from '../base/index.js'
import { parseConfig } from './load.js'
import type { PoolConfig } from './pool-config.js'

/** A value of pool.yaml: the keys that lead to it, and its text. */
export type Setting = readonly [path: readonly string[], value: string]

/**
 * The text of a pool.yaml with other values. A key of the first level that is not there is added
 * at the end.
 * @param path what messages call it
 * @param file its absolute path
 * @param wanted the content that it is to have then: no more than the values may change
 * @throws BAD_CONFIG where that cannot be done, as where an alias stands for the value
 */
export function withValues(
  text: string,
  settings: readonly Setting[],
  { path, file, wanted }: { path: string; file: string; wanted: PoolConfig },
): string {
  let next = text
  for (const setting of settings) next = withValue(next, setting)
  const { ofUser: _, ...config } = wanted
  const keys = settings.map(([path]) => path.join('.')).join(', ')
  const values = settings.map(([, value]) => value).join(', ')
  let why = 'it is written in a way that only a person can change'
  try {
    if (isDeepStrictEqual(parseConfig(next, path, file), config)) return next
  } catch (err) {
    const refusal = (err as Error).message.replace(/^.*?:\d+:\d+: /, '')
    // The place is of a text that nobody has seen.
    if (settings.some(([path]) => refusal.startsWith(`${path.join('.')}: `))) why = refusal
  }
  const what = `${path}: ${keys} cannot become ${values}: ${why}`
  throw new ThinfsError('BAD_CONFIG', what)
}

function withValue(text: string, [path, value]: Setting): string {
  // As loadConfig reads it: every scalar is the text that stands there.
  const document = parseDocument(text, { schema: 'failsafe', uniqueKeys: false })
  const node = document.getIn(path, true)
  if (isScalar(node) && node.range) {
    const [begin, end] = node.range
    return text.slice(0, begin) + value + text.slice(end)
  }
  return `${text}${text.endsWith('\n') ? '' : '\n'}${path.join('.')}: ${value}\n`
}
