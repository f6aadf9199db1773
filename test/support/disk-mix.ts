import type { Test } from 'tap'
import type { RemoteDisk } from '../../src/remote/index.js'
import type { Random } from './random.js'

const PAGE = 4096

/**
 * Sends requests of all kinds, several in flight, none of which touch each other. Reads are
 * compared with the model, which has what was written before.
 * @param shape.inFlight requests
 * @param shape.mostPages of a request
 */
export async function mixed(
  t: Test,
  disk: Pick<RemoteDisk, 'read' | 'write' | 'zero'>,
  model: Buffer,
  random: Random,
  { inFlight, mostPages = Number.POSITIVE_INFINITY }: { inFlight: number; mostPages?: number },
): Promise<void> {
  const calls: Promise<void>[] = []
  const pages = model.length / PAGE / inFlight
  for (let i = 0; i < inFlight; i++) {
    const first = random.below(pages)
    const offset = (i * pages + first) * PAGE
    const length = (1 + random.below(Math.min(mostPages, pages - first))) * PAGE
    const kind = random.below(4)
    if (kind === 0) {
      const into = Buffer.alloc(length, 'before')
      const wanted = Buffer.from(model.subarray(offset, offset + length))
      const read = disk.read(into, offset)
      calls.push(read.then(() => void t.ok(into.equals(wanted), 'what was written')))
    } else if (kind === 1) {
      model.fill(0, offset, offset + length)
      calls.push(disk.zero(offset, length))
    } else {
      const from = Buffer.alloc(length, 1 + random.below(255))
      from.copy(model, offset)
      calls.push(disk.write(from, offset))
    }
  }
  await Promise.all(calls)
}

/** Bytes in no extent have to read as zeros. @param extents of the whole disk, ascending */
export function mustBeHoles(
  t: Test,
  model: Buffer,
  extents: readonly { offset: number; length: number }[],
): void {
  let at = 0
  for (const { offset, length } of [...extents, { offset: model.length, length: 0 }]) {
    t.ok(offset >= at && model.subarray(at, offset).every(byte => byte === 0), `hole at ${at}`)
    at = offset + length
  }
}
