/**
 * Lines of a table: from what a client writes to what the engine serves, and back to what the
 * kernel prints.
 *
 * Source: Documentation/admin-guide/device-mapper/{linear,striped,zero,thin-provisioning}.rst;
 * which lines are refused, and with what, was asked of Linux 6.1.
 */
import { MAX_DEV_ID, refused, type ThinfsError } from '../base/index.js'
import type { Range, Source, Target } from '../tables/index.js'
import { type DeviceNumber, nameOfDevice } from './abi.js'

/** Name and version of each target, in the order in which a list of them shows them. */
export const TARGET_VERSIONS: readonly (readonly [name: string, version: readonly number[]])[] = [
  // Listed because LVM asks for them before it snapshots a thin volume. Loading them is refused.
  ['snapshot-merge', [1, 5, 0]],
  ['snapshot-origin', [1, 9, 0]],
  ['snapshot', [1, 16, 0]],
  ['zero', [1, 1, 0]],
  ['thin-pool', [1, 23, 0]],
  ['thin', [1, 23, 0]],
  ['striped', [1, 6, 0]],
  ['linear', [1, 4, 0]],
  ['error', [1, 5, 0]],
]

export interface Line {
  start: number
  length: number
  type: string
  params: string
}

/** A device and where on it, in sectors. */
export interface Place {
  device: DeviceNumber
  start: number
}

/** A pool's line: what the engine is told of it, but its devices by their numbers. */
type PoolLine = Omit<
  Extract<Target, { type: 'thin-pool' }>,
  'start' | 'length' | 'metadata' | 'data'
> & { metadata: DeviceNumber; data: DeviceNumber }

export type LineTarget = { start: number; length: number } & (
  | { type: 'zero' }
  | { type: 'error' }
  | { type: 'linear'; place: Place }
  | { type: 'striped'; chunk: number; stripes: Place[] }
  | PoolLine
  | { type: 'thin'; pool: DeviceNumber; devId: number; externalOrigin?: DeviceNumber }
)

/** Features of a pool as lines name them, in the order in which the kernel prints them. */
const POOL_FEATURES = [
  ['skip_block_zeroing', 'skipBlockZeroing'],
  ['ignore_discard', 'ignoreDiscard'],
  ['no_discard_passdown', 'noDiscardPassdown'],
  ['read_only', 'readOnly'],
  ['error_if_no_space', 'errorIfNoSpace'],
] as const
const MAX_POOL_FEATURES = 4
/** Sectors. */
const MIN_BLOCK = 128
const MAX_BLOCK = 2097152

/** Finds the number of the block device that a word of a line names: a path or `MAJOR:MINOR`. */
export type LookUpDevice = (word: string) => Promise<DeviceNumber>

const invalid = (detail: string): ThinfsError => refused('EINVAL', detail)

/**
 * Reads one line.
 * @throws BAD_ARGUMENT with the kernel's errno
 */
export async function parseTarget(line: Line, lookUp: LookUpDevice): Promise<LineTarget> {
  const { start, length, type } = line
  const at = { start, length }
  const words = splitWords(line.params)
  switch (type) {
    case 'zero':
      if (words.length > 0) throw invalid('zero: No arguments required')
      return { ...at, type }
    case 'error':
      return { ...at, type }
    case 'linear': {
      if (words.length !== 2) throw invalid('linear: Invalid argument count')
      const offset = sector(words[1]!, 'linear: Invalid device sector')
      return { ...at, type, place: { device: await lookUp(words[0]!), start: offset } }
    }
    case 'striped':
      return await parseStriped(at, words, lookUp)
    case 'thin-pool':
      return await parsePool(at, words, lookUp)
    case 'thin': {
      if (words.length !== 2 && words.length !== 3) throw invalid('thin: Invalid argument count')
      const externalOrigin = words.length === 3 ? await lookUp(words[2]!) : undefined
      const pool = await lookUp(words[0]!)
      const devId = decimal(words[1]!)
      if (devId === null || devId > MAX_DEV_ID) throw invalid('thin: Invalid device id')
      return { ...at, type, pool, devId, ...(externalOrigin && { externalOrigin }) }
    }
    default:
      throw invalid(`${type}: unknown target type`)
  }
}

async function parseStriped(
  at: { start: number; length: number },
  words: string[],
  lookUp: LookUpDevice,
): Promise<LineTarget> {
  if (words.length < 2) throw invalid('striped: Not enough arguments')
  const count = decimal(words[0]!)
  if (count === null || count === 0) throw invalid('striped: Invalid stripe count')
  const chunk = decimal(words[1]!)
  if (chunk === null || chunk === 0) throw invalid('striped: Invalid chunk_size')
  if (at.length % count !== 0) {
    throw invalid('striped: Target length not divisible by number of stripes')
  }
  if ((at.length / count) % chunk !== 0) {
    throw invalid('striped: Target length not divisible by chunk size')
  }
  if (words.length !== 2 + 2 * count) throw invalid('striped: Not enough destinations specified')
  const stripes: Place[] = []
  for (let i = 0; i < count; i++) {
    const start = sector(words[3 + 2 * i]!, "striped: Couldn't parse stripe destination")
    stripes.push({ device: await lookUp(words[2 + 2 * i]!), start })
  }
  return { ...at, type: 'striped', chunk, stripes }
}

async function parsePool(
  at: { start: number; length: number },
  words: string[],
  lookUp: LookUpDevice,
): Promise<LineTarget> {
  if (words.length < 4) throw invalid('thin-pool: Invalid argument count')
  const given = words.slice(5)
  const nrFeatures = words.length > 4 ? decimal(words[4]!) : 0
  if (nrFeatures === null || nrFeatures > MAX_POOL_FEATURES || nrFeatures > given.length) {
    throw invalid('thin-pool: Invalid number of pool feature arguments')
  }
  // Words behind the features are ignored, as the kernel does.
  const features = given.slice(0, nrFeatures).map(word => word.toLowerCase())
  const known = POOL_FEATURES.map(([name]) => name as string)
  if (features.some(feature => !known.includes(feature))) {
    throw invalid('thin-pool: Unrecognised pool feature requested')
  }
  const metadata = await lookUp(words[0]!)
  const data = await lookUp(words[1]!)
  if (nameOfDevice(metadata) === nameOfDevice(data)) {
    throw invalid('thin-pool: Metadata and data device cannot be the same device')
  }
  const blockSize = decimal(words[2]!)
  if (
    blockSize === null ||
    blockSize < MIN_BLOCK ||
    blockSize > MAX_BLOCK ||
    blockSize % MIN_BLOCK !== 0
  ) {
    throw invalid('thin-pool: Invalid block size')
  }
  const lowWater = decimal(words[3]!)
  if (lowWater === null) throw invalid('thin-pool: Invalid low water mark')
  const has = (name: string): boolean => features.includes(name)
  return {
    ...at,
    type: 'thin-pool',
    ...{ metadata, data, blockSize, lowWater },
    skipBlockZeroing: has('skip_block_zeroing'),
    ignoreDiscard: has('ignore_discard'),
    noDiscardPassdown: has('no_discard_passdown'),
    readOnly: has('read_only'),
    errorIfNoSpace: has('error_if_no_space'),
  }
}

/** The parameters as the kernel prints them, trailing blanks and all. */
export function paramsOf(target: LineTarget): string {
  switch (target.type) {
    case 'linear':
      return `${nameOfDevice(target.place.device)} ${target.place.start}`
    case 'striped': {
      const { chunk, stripes } = target
      const places = stripes.map(({ device, start }) => `${nameOfDevice(device)} ${start}`)
      return [stripes.length, chunk, ...places].join(' ')
    }
    case 'thin-pool': {
      const { metadata, data, blockSize, lowWater } = target
      const features = POOL_FEATURES.filter(([, key]) => target[key]).map(([name]) => `${name} `)
      const devices = `${nameOfDevice(metadata)} ${nameOfDevice(data)}`
      return `${devices} ${blockSize} ${lowWater} ${features.length} ${features.join('')}`
    }
    case 'thin': {
      const { pool, devId, externalOrigin } = target
      const origin = externalOrigin ? ` ${nameOfDevice(externalOrigin)}` : ''
      return `${nameOfDevice(pool)} ${devId}${origin}`
    }
    default:
      return ''
  }
}

/** The status of what has none but that it is there; null: the engine has to be asked. */
export function plainStatusOf(target: LineTarget): string | null {
  if (target.type === 'thin' || target.type === 'thin-pool') return null
  if (target.type !== 'striped') return ''
  const devices = target.stripes.map(({ device }) => nameOfDevice(device))
  return [target.stripes.length, ...devices, 1, 'A'.repeat(target.stripes.length)].join(' ')
}

/** Devices that a line names, in its order, each as often as it is named. */
export function devicesOf(target: LineTarget): DeviceNumber[] {
  switch (target.type) {
    case 'linear':
      return [target.place.device]
    case 'striped':
      return target.stripes.map(({ device }) => device)
    case 'thin-pool':
      return [target.metadata, target.data]
    case 'thin':
      return [target.pool, ...(target.externalOrigin ? [target.externalOrigin] : [])]
    default:
      return []
  }
}

/** Translates the devices of a line for the engine. */
export interface Below {
  /** @param length sectors */
  sourceOf(place: Place, length: number): Promise<Source>
  /** All of a device, or its first `length` sectors, as places in files and disks. */
  extentsOf(device: DeviceNumber, length: number | null): Promise<Range[]>
  /** Minor of a pool of ours that is live. @throws BAD_ARGUMENT, EINVAL */
  poolOf(device: DeviceNumber): number
  /** Sectors of a device. */
  sizeOf(device: DeviceNumber): Promise<number>
}

export async function resolveTarget(target: LineTarget, below: Below): Promise<Target> {
  const { start, length } = target
  const at = { start, length }
  switch (target.type) {
    case 'linear':
      return { ...at, type: 'linear', source: await below.sourceOf(target.place, length) }
    case 'striped': {
      const each = length / target.stripes.length
      const stripes = await Promise.all(target.stripes.map(place => below.sourceOf(place, each)))
      return { ...at, type: 'striped', chunk: target.chunk, stripes }
    }
    case 'thin-pool':
      return {
        ...target,
        metadata: await below.extentsOf(target.metadata, null),
        data: await below.extentsOf(target.data, length),
      }
    case 'thin': {
      const { devId, externalOrigin } = target
      const thin = { ...at, type: 'thin' as const, pool: below.poolOf(target.pool), devId }
      if (externalOrigin === undefined) return thin
      const originLength = await below.sizeOf(externalOrigin)
      const whole = { device: externalOrigin, start: 0 }
      return { ...thin, externalOrigin: await below.sourceOf(whole, originLength) }
    }
    default:
      return target
  }
}

/**
 * Words of a parameter line: blanks separate them, a backslash takes the next character as it is.
 * Source: dm_split_args().
 */
export function splitWords(text: string): string[] {
  const words = text.match(/(?:\\[\s\S]|[^\s\\])+/g) ?? []
  return words.map(word => word.replace(/\\([\s\S])/g, '$1'))
}

/**
 * A decimal number that fits 32 bits, as sscanf("%u") reads a whole word; null for anything else.
 */
function decimal(word: string): number | null {
  if (!/^\d{1,10}$/.test(word)) return null
  const number = Number(word)
  return number < 2 ** 32 ? number : null
}

/** @throws BAD_ARGUMENT, EINVAL, for what is no sector below 2^44: bytes have to be exact */
function sector(word: string, complaint: string): number {
  if (!/^\d{1,14}$/.test(word) || Number(word) >= 2 ** 44) throw invalid(complaint)
  return Number(word)
}
