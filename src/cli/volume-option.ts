/** The option `--volume NAME=SIZE`, more than once for more. */
import { ThinfsError } from '../base/index.js'
import { parseSize } from '../config/index.js'

export function collect(text: string, before: string[] = []): string[] {
  return [...before, text]
}

/** @throws BAD_ARGUMENT for another form, and for a name that is given twice */
export function volumesOf(texts: readonly string[] = []): Record<string, { size: number }> {
  const volumes = texts.map(volumeOf)
  const names = volumes.map(([name]) => name)
  const twice = names.find((name, i) => names.indexOf(name) < i)
  if (twice === undefined) return Object.fromEntries(volumes)
  throw new ThinfsError('BAD_ARGUMENT', `--volume ${twice}: it is given twice`)
}

function volumeOf(text: string): [name: string, volume: { size: number }] {
  const [, name, size] = /^(.*)=([^=]*)$/.exec(text) ?? []
  if (name === undefined || size === undefined) {
    throw new ThinfsError('BAD_ARGUMENT', `--volume ${text}: NAME=SIZE is what it takes`)
  }
  return [name, { size: parseSize(size) }]
}
