/**
 * dm-thin's own words: messages that a thin-pool target takes, and the lines that `dmsetup status`
 * prints. Source: drivers/md/dm-thin.c, and what Linux 6.1 was seen to print.
 */
import { type DevId, MAX_DEV_ID, SECTOR_SIZE, ThinfsError } from '../base/index.js'
import type { ThinPool } from './thin-pool.js'

export type Message =
  | { kind: 'create_thin' | 'delete'; devId: DevId }
  | { kind: 'create_snap'; devId: DevId; origin: DevId }
  | { kind: 'set_transaction_id'; current: number; next: number }
  | { kind: 'reserve_metadata_snap' | 'release_metadata_snap' }

const ARGUMENTS: Record<Message['kind'], readonly string[]> = {
  create_thin: ['DEV_ID'],
  create_snap: ['DEV_ID', 'ORIGIN_ID'],
  delete: ['DEV_ID'],
  set_transaction_id: ['CURRENT', 'NEW'],
  reserve_metadata_snap: [],
  release_metadata_snap: [],
}

/** Parses `create_thin 0` and the like; words in any case. @throws BAD_MESSAGE */
export function parseMessage(text: string): Message {
  const [word = '', ...args] = text.trim().split(/\s+/)
  const kind = word.toLowerCase() as Message['kind']
  const wanted = Object.hasOwn(ARGUMENTS, kind) ? ARGUMENTS[kind] : undefined
  if (!wanted) {
    const allowed = Object.keys(ARGUMENTS).join(', ')
    throw new ThinfsError('BAD_MESSAGE', `${word || 'empty message'}: allowed are ${allowed}`)
  }
  if (args.length !== wanted.length) {
    const usage = [kind, ...wanted].join(' ')
    throw new ThinfsError('BAD_MESSAGE', `${kind} takes ${wanted.length} arguments: ${usage}`)
  }
  switch (kind) {
    case 'create_thin':
    case 'delete':
      return { kind, devId: devIdOf(args[0]!) }
    case 'create_snap':
      return { kind, devId: devIdOf(args[0]!), origin: devIdOf(args[1]!) }
    case 'set_transaction_id':
      return { kind, current: numberOf(args[0]!), next: numberOf(args[1]!) }
    default:
      return { kind }
  }
}

function numberOf(text: string): number {
  const value = /^\d+$/.test(text) ? Number(text) : Number.NaN
  if (!Number.isSafeInteger(value)) {
    throw new ThinfsError('BAD_MESSAGE', `${text} is not a transaction id: a decimal number`)
  }
  return value
}

function devIdOf(text: string): DevId {
  const value = /^\d+$/.test(text) ? Number(text) : Number.NaN
  if (!(value <= MAX_DEV_ID)) {
    throw new ThinfsError('BAD_MESSAGE', `${text} is not a device id: 0 to ${MAX_DEV_ID}`)
  }
  return value as DevId
}

/** Used metadata blocks as the kernel counts them: what is kept back for commits is used. */
export function usedMetadataBlocks(pool: ThinPool): number {
  const { nrMetadataBlocks, nrAllocatedMetadataBlocks } = pool.metadata
  const free = nrMetadataBlocks - nrAllocatedMetadataBlocks
  return nrMetadataBlocks - Math.max(0, free - pool.space.metadata.reserve)
}

/**
 * The pool's line of `dmsetup status` behind start, length and type, with the trailing space that
 * it has there.
 */
export function poolStatus(pool: ThinPool): string {
  const { metadata } = pool
  if (pool.mode === 'fail') return 'Fail'
  const mode = { write: 'rw', out_of_data_space: 'out_of_data_space' }[pool.mode as string] ?? 'ro'
  const discard =
    pool.discards === 'ignore'
      ? 'ignore_discard'
      : pool.blocks.freeMeansHole
        ? 'discard_passdown'
        : 'no_discard_passdown'
  return [
    metadata.transactionId,
    `${usedMetadataBlocks(pool)}/${metadata.nrMetadataBlocks}`,
    `${metadata.nrAllocatedDataBlocks}/${metadata.nrDataBlocks}`,
    metadata.heldRoot === 0 ? '-' : metadata.heldRoot,
    mode,
    discard,
    `${pool.space.onFull}_if_no_space`,
    metadata.needsCheck ? 'needs_check' : '-',
    pool.space.metadata.lowWaterMark,
    '',
  ].join(' ')
}

/** A thin device's line of `dmsetup status` behind start, length and type. */
export function thinStatus(pool: ThinPool, devId: DevId): string {
  if (pool.mode === 'fail') return 'Fail'
  const sectors = pool.blockSize / SECTOR_SIZE
  try {
    const mapped = pool.metadata.details(devId).mappedBlocks * sectors
    const highest = pool.metadata.mappings.highestMapped(devId)
    return `${mapped} ${highest < 0 ? '-' : (highest + 1) * sectors - 1}`
  } catch (err) {
    if (err instanceof ThinfsError) return 'Error'
    throw err
  }
}
