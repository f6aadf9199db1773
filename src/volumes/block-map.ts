/** The owners of a pool's data blocks, summed up: for a picture, whatever the size of the pool. */
import { type DataBlock, Slice, ThinfsError } from '../base/index.js'
import { ENTRIES_PER_BITMAP } from '../metadata/index.js'
import type { ThinPool } from '../pool/index.js'
import type { BlockMap } from './admin.js'
import { forEachExclusive } from './usage.js'
import type { Volume } from './volume.js'

/** Cells that a map may have. */
const CELLS_MAX = 65_536
/** Blocks whose counts are looked at between two looks at the clock. */
const PIECE_BLOCKS = ENTRIES_PER_BITMAP

/**
 * Looks at every count, and at all mappings in parts of trees that are not shared: the cost follows
 * the metadata, not the number of snapshots. Requests run meanwhile, so it is approximate where
 * mappings change.
 * @param volumes those that count as owners
 * @param mustGoOn throws when the work has to end
 * @throws BAD_ARGUMENT
 */
export async function blockMapOf(
  pool: ThinPool,
  volumes: readonly Volume[],
  cells: number,
  mustGoOn: () => void,
): Promise<BlockMap> {
  if (!(cells >= 1 && cells <= CELLS_MAX)) {
    throw new ThinfsError('BAD_ARGUMENT', `cells ${cells}: 1 to ${CELLS_MAX} are allowed`)
  }
  const { metadata, clock, blockSize } = pool
  const { nrDataBlocks: nrBlocks } = metadata
  const blocksPerCell = Math.max(1, Math.ceil(nrBlocks / cells))
  const nrCells = Math.ceil(nrBlocks / blocksPerCell)
  const slice = new Slice(clock)

  const used = Array.from({ length: nrCells }, (_, i) =>
    Math.min(blocksPerCell, nrBlocks - i * blocksPerCell),
  )
  for (let begin = 0; begin < nrBlocks; begin += PIECE_BLOCKS) {
    mustGoOn()
    pool.mustBeReadable()
    if (slice.isOver) await slice.yield()
    // It may have become smaller meanwhile.
    const end = Math.min(begin + PIECE_BLOCKS, nrBlocks, metadata.nrDataBlocks)
    if (begin >= end) break
    metadata.forEachFreeRun((from, to) => takeRun(used, blocksPerCell, from, to), begin, end)
  }

  const exclusive = new Uint32Array(nrCells)
  const most = new Uint32Array(nrCells)
  const owner = new Int32Array(nrCells).fill(-1)
  const own = new Uint32Array(nrCells)
  const owners: BlockMap['volumes'] = []
  for (const volume of volumes) {
    own.fill(0)
    let blocks = 0
    const visit = (_vblock: number, dataBlock: DataBlock): void => {
      if (dataBlock >= nrBlocks) return
      own[Math.floor(dataBlock / blocksPerCell)]! += 1
      blocks++
    }
    try {
      await forEachExclusive(pool, volume, mustGoOn, visit)
    } catch (err) {
      if (!volume.device.gone) throw err
    }
    if (volume.device.gone) continue
    for (let cell = 0; cell < nrCells; cell++) {
      const here = own[cell]!
      if (here === 0) continue
      exclusive[cell]! += here
      if (here > most[cell]!) {
        most[cell] = here
        owner[cell] = owners.length
      }
    }
    const { devId } = volume.device
    const mapped = metadata.details(devId).mappedBlocks * blockSize
    owners.push({ name: volume.name, devId, mapped, exclusive: blocks * blockSize })
  }
  return {
    dataBlockSize: blockSize,
    blocks: nrBlocks,
    blocksPerCell,
    used,
    exclusive: [...exclusive],
    owner: [...owner],
    volumes: owners,
  }
}

/** Takes a run of free blocks off the cells that it is in. */
function takeRun(used: number[], blocksPerCell: number, from: number, to: number): void {
  for (let at = from; at < to; ) {
    const cell = Math.floor(at / blocksPerCell)
    const end = Math.min(to, (cell + 1) * blocksPerCell)
    used[cell]! -= end - at
    at = end
  }
}
