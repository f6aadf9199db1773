/**
 * The deep part of a check: reads every data block that is mapped, and looks for free ones that are
 * no holes.
 *
 * It goes through what the data store holds, in slices of a mebibyte: holes cost nothing, a block
 * that many volumes share is read once. Requests change the metadata between two slices, and while
 * the check waits for a disk.
 */
import { bytes, type DataBlock, errnoOf, isZero, MIB, SECTOR_SIZE } from '../base/index.js'
import type { ThinMetadata } from '../metadata/index.js'
import type { DataStore } from '../storage/index.js'
import type { CheckProblem, DataReport } from './admin.js'

/** Problems of a kind that are listed. */
const MAX_LISTED = 1000
/** Mappings that one slice of the search for owners looks at. */
const SLICE_MAPPINGS = 1024

export interface DataCheck {
  metadata: ThinMetadata
  data: Pick<DataStore, 'nextData' | 'nextHole' | 'readLater' | 'readNow' | 'size'>
  /** Whether every free block has to be a hole. */
  freeMeansHole: boolean
  nameOf(devId: number): string
  /** Lets others have their turn; throws to end the check. */
  pause(): Promise<void>
  /** Is told of the bytes of data that were read so far. */
  onProgress?: ((readBytes: number) => void) | null
}

export async function checkData(check: DataCheck): Promise<[DataReport, CheckProblem[]]> {
  const { metadata, data, freeMeansHole, pause } = check
  const blockSize = metadata.dataBlockSectors * SECTOR_SIZE
  // The pool may become smaller meanwhile.
  const endNow = (): number => Math.min(data.size, metadata.nrDataBlocks * blockSize)
  const buffer = Buffer.allocUnsafe(MIB)
  const unreadable = new Map<number, string>()
  const stray = new Runs()
  const idle = new Runs()
  let readBytes = 0

  async function look(block: number, from: number, length: number): Promise<void> {
    const isMapped = metadata.dataCount(block as DataBlock) > 0
    const isFree = (): boolean =>
      freeMeansHole && block < metadata.nrDataBlocks && metadata.isDataFree(block as DataBlock)
    if (!isMapped && !isFree()) return
    try {
      if (!data.readNow(buffer, 0, length, bytes(from))) {
        await data.readLater(buffer, 0, length, bytes(from))
        // A free block may have been used meanwhile: what is judged is what it holds now.
        if (!isMapped && !data.readNow(buffer, 0, length, bytes(from))) return
      }
      readBytes += length
    } catch (err) {
      if (isMapped) unreadable.set(block, errnoOf(err))
      return
    }
    if (!isMapped && isFree()) (isZero(buffer, length) ? idle : stray).add(block)
  }

  for (let at: number = data.nextData(bytes(0)); at < endNow(); ) {
    const hole = Math.min(data.nextHole(bytes(at)), endNow())
    const stop = Math.min(hole, at + MIB)
    while (at < Math.min(stop, endNow())) {
      const block = Math.floor(at / blockSize)
      const length = Math.min((block + 1) * blockSize, stop) - at
      await look(block, at, length)
      at += length
    }
    if (at === hole && at < endNow()) at = data.nextData(bytes(at))
    check.onProgress?.(readBytes)
    await pause()
  }

  const problems: CheckProblem[] = []
  if (unreadable.size > 0) problems.push(...(await owners(check, unreadable)))
  const shows = 'no hole: a new volume would show what is in it'
  problems.push(...stray.problems('error', shows))
  problems.push(...idle.problems('warning', 'no hole: takes space for zeros'))
  const strayBlocks = freeMeansHole ? stray.count : null
  return [{ readBytes, unreadableBlocks: unreadable.size, strayBlocks }, problems]
}

/** Finds the owners of unreadable blocks, by a walk of all mappings. */
async function owners(
  { metadata, nameOf, pause }: DataCheck,
  unreadable: ReadonlyMap<number, string>,
): Promise<CheckProblem[]> {
  const problems: CheckProblem[] = []
  const mapping = { dataBlock: 0 as DataBlock, time: 0 }
  for (const devId of metadata.deviceIds()) {
    let vblock = metadata.mappings.next(devId, 0, mapping)
    for (let seen = 1; vblock >= 0 && problems.length < MAX_LISTED; seen++) {
      const errno = unreadable.get(mapping.dataBlock)
      if (errno !== undefined) {
        const where = `block ${vblock} of ${nameOf(devId)}`
        const message = `data block ${mapping.dataBlock} cannot be read (${errno}): ${where}`
        problems.push({ severity: 'error', message })
      }
      if (seen % SLICE_MAPPINGS === 0) await pause()
      if (!metadata.hasDevice(devId)) break
      vblock = metadata.mappings.next(devId, vblock + 1, mapping)
    }
  }
  return problems
}

/** Ascending blocks as runs. */
class Runs {
  readonly #runs: [first: number, last: number][] = []
  count = 0

  /** Adds a block that is the last one or after it. */
  add(block: number): void {
    const run = this.#runs.at(-1)
    if (run?.[1] === block) return
    this.count++
    if (run?.[1] === block - 1) run[1] = block
    else this.#runs.push([block, block])
  }

  problems(severity: CheckProblem['severity'], what: string): CheckProblem[] {
    return this.#runs.slice(0, MAX_LISTED).map(([first, last]) => {
      const message =
        first === last
          ? `data block ${first} is free but ${what}`
          : `data blocks ${first} to ${last} are free but ${what}`
      return { severity, message }
    })
  }
}
