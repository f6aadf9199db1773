/** The option `--volume NAME=SIZE`, more than once for more. */
import { ThinfsError } from '../base/index.js'
import { parseSize } from '../config/index.js'

export function collect(text: string, before: string[] = []): string[] {
  return [...before, text]
}

/** @throws BAD_ARGUMENT for another form */
export function volumesOf(texts: readonly string[] = []): Record<string, { size: number }> {
  return Object.fromEntries(texts.map(volumeOf))
}

function volumeOf(text: string): [name: string, volume: { size: number }] {
  const [, name, size] = /^(.*)=([^=]*)$/.exec(text) ?? []
  if (name === undefined || size === undefined) {
    throw new ThinfsError('BAD_ARGUMENT', `--volume ${text}: NAME=SIZE is what it takes`)
  }
  return [name, { size: parseSize(size) }]
}
