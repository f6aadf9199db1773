/**
 * The keys of pool.yaml and what each may hold.
 *
 * Every value arrives as the text in the file. An issue's message says what is allowed at its
 * place; load.ts adds the place and the value that was found.
 */
import { normalize } from 'node:path'
import * as z from 'zod'
import {
  addressId,
  isDataBlockSize,
  isLikeAddress,
  isQueueTimeout,
  MAX_DEV_ID,
  MAX_METADATA_BLOCKS,
  METADATA_BLOCK_SIZE,
  MIB,
  NBD_FORMS,
  type NbdAddress,
  parseNbdAddress,
  parseRbdName,
  QUEUE_TIMEOUTS,
  RBD_FORMS,
  type RbdAddress,
  type RemoteAddress,
  SECTOR_SIZE,
  ThinfsError,
} from '../base/index.js'
import { whyNotAName } from './names.js'
import {
  BLOCK_SIZES,
  DEFAULTS,
  DISCARDS,
  type Extent,
  FENCE_WORDS,
  LOCKS,
  type LowWaterMark,
  ON_FULL,
  TRANSPORTS,
} from './pool-config.js'
import { exactSize, parseSize, SIZE_FORMS } from './size.js'

/** A smaller metadata device has no room for the reserve that keeps a full pool manageable. */
const METADATA_SIZE_MIN = 2 * MIB
/** A few requests of each kind. */
const CACHE_SIZE_MIN = 4 * MIB
const CACHE_DIRTY_MIN = MIB
/** More is never used. docs/FORMAT.md */
const METADATA_SIZE_MAX = MAX_METADATA_BLOCKS * METADATA_BLOCK_SIZE
/** Microseconds. Longer than any wake-up: nothing is gained beyond. */
const SPIN_MAX = 1000

/** Seconds that a command of `fence` may take. */
const FENCE_TIMEOUT_MAX = 3600

/** A value that `parse` reads; undefined from it, or a ThinfsError, means not allowed. */
function value<T>(allowed: string, parse: (text: string) => T | undefined) {
  const type = z.string({ error: allowed }).transform((text, context): T => {
    const found = tryParse(text, parse)
    if (found !== undefined) return found
    context.addIssue({ code: 'custom', message: allowed })
    return z.NEVER
  })
  // For the manual page, as `said` of others.
  return type.meta({ allowed })
}

function tryParse<T>(text: string, parse: (text: string) => T): T | undefined {
  try {
    return parse(text)
  } catch (err) {
    if (err instanceof ThinfsError) return undefined
    throw err
  }
}

const size = (allowed: string, test: (bytes: number) => boolean) =>
  value(allowed, text => {
    const bytes = parseSize(text)
    return test(bytes) ? bytes : undefined
  })

const oneOf = <const T extends readonly string[]>(words: T) =>
  value(words.join(', '), text => words.find(word => word === text) as T[number] | undefined)

const path = value('a path', text => (/^[^\0]+$/.test(text) ? text : undefined))

/** Of data or metadata. */
const storePath = value(
  'a path; an address has another key: nbd: nbd://HOST[:PORT]/EXPORT, or rbd: POOL/IMAGE',
  text => (/^[^\0]+$/.test(text) && !isLikeAddress(text) ? text : undefined),
)

const nbdAddress = value(`${NBD_FORMS}; no user, no password`, text => parseNbdAddress(text))

/** With what `ceph` says to be filled in. */
const rbdName = value(RBD_FORMS, text => parseRbdName(text))

/** A map with these keys and no others. */
const map = <S extends z.ZodRawShape>(shape: S) => {
  const keys = Object.keys(shape).join(', ')
  return z.strictObject(shape, {
    error: issue => (issue.code === 'unrecognized_keys' ? keys : `a map of ${keys}`),
  })
}

/** @returns undefined when the text is not a percentage, as in 20% or 0.25% */
function parsePercent(text: string): number | undefined {
  const digits = /^(\d+(?:\.\d{1,2})?)%$/.exec(text)?.[1]
  return digits === undefined ? undefined : Number(digits)
}

const lowWaterMark = value(`a percentage as in 20%, or ${SIZE_FORMS}`, (text): LowWaterMark => {
  const percent = parsePercent(text)
  if (percent === undefined) return { bytes: parseSize(text) }
  if (percent > 100) throw new ThinfsError('BAD_ARGUMENT', 'more than all')
  return { percent }
})

const extents = z
  .array(
    map({
      offset: size(`a multiple of 512 bytes: ${SIZE_FORMS}`, n => n % SECTOR_SIZE === 0),
      size: size(`a multiple of 512 bytes: ${SIZE_FORMS}`, n => n > 0 && n % SECTOR_SIZE === 0),
    }),
    { error: 'a list of maps of offset, size' },
  )
  .min(1, { error: 'at least one part' })

const percentage = (allowed: string, min: number, max: number) =>
  value(allowed, text => {
    const percent = parsePercent(text)
    return percent !== undefined && percent >= min && percent <= max ? percent : undefined
  })

/** @param allowed what `max` may be */
const autoextend = (allowed: string, test: (bytes: number) => boolean) =>
  map({
    threshold: percentage('a percentage from 50% to 99%', 50, 99).default(
      DEFAULTS.autoextend.threshold,
    ),
    percent: percentage('a percentage from 1% to 1000%, as in 20%', 1, 1000).default(
      DEFAULTS.autoextend.percent,
    ),
    max: size(allowed, test).optional(),
  }).optional()

const volume = map({
  size: size(
    `a multiple of 512 bytes: ${SIZE_FORMS}`,
    n => n > 0 && n % SECTOR_SIZE === 0,
  ).optional(),
  id: value(`a device id from 0 to ${MAX_DEV_ID}`, text =>
    /^\d{1,8}$/.test(text) && Number(text) <= MAX_DEV_ID ? Number(text) : undefined,
  ).optional(),
  snapshot_of: z
    .string({ error: 'the name of another volume in this file' })
    .meta({ allowed: 'the name of another volume in this file' })
    .optional(),
  limit: size(SIZE_FORMS, n => n > 0).optional(),
  reserve: size(SIZE_FORMS, n => n > 0).optional(),
  external_origin: path.optional(),
})

const FENCE_FORMS = `a program and its arguments, with ${FENCE_WORDS.map(word => `"{${word}}"`).join(', ')} in quotes`

/** A word of a command: what stands in braces has to be known. */
const fenceWord = value(FENCE_FORMS, text => {
  const words = [...text.matchAll(/\{([^{}]*)\}/g)].map(([, word]) => word)
  const isKnown = words.every(word => FENCE_WORDS.some(known => known === word))
  return /^[^\0]+$/.test(text) && isKnown ? text : undefined
})

const tenancy = map({
  locks: oneOf(LOCKS)
    .default(DEFAULTS.locks)
    .meta({
      said: `What refuses the writes of a host that has lost the pool. enforced: the file system, which ties requests to locks. reservations: the disks, by persistent reservations. advisory: nothing. Default: ${DEFAULTS.locks}.`,
    }),
  fence: map({
    command: z
      .array(fenceWord, { error: `a list: ${FENCE_FORMS}` })
      .min(1, { error: FENCE_FORMS })
      .meta({
        said: 'Keeps the host before from writing. Status 0 says that it cannot write any more; after any other the pool is not taken over.',
      }),
    timeout: value(`seconds from 1 to ${FENCE_TIMEOUT_MAX}, as in 60s`, text => {
      const seconds = Number(/^(\d{1,4})s?$/.exec(text)?.[1])
      return seconds >= 1 && seconds <= FENCE_TIMEOUT_MAX ? seconds : undefined
    })
      .default(DEFAULTS.fenceTimeout)
      .meta({
        said: `How long the command may take; the take-over is refused after that. Default: ${DEFAULTS.fenceTimeout}s.`,
      }),
  })
    .optional()
    .meta({ said: 'The command that thinfs mount --take-over runs first. Default: none.' }),
})
  .optional()
  .meta({
    said: 'Several hosts reach the pool, and one serves it at a time. Default: one host, but for a pool that is on NBD or Ceph as a whole.',
  })

type Volumes = Map<string, z.infer<typeof volume>>

const volumes = z
  .map(z.string(), volume, {
    error: 'a map from names to size, id, snapshot_of, external_origin, limit, reserve',
  })
  .superRefine((all, context) => {
    const refuse = (path: string[], message: string) =>
      context.addIssue({ code: 'custom', path, message })
    const names = new Map<number, string>()
    const circular = ownOrigins(all)
    for (const [name, { size, id, snapshot_of: origin, external_origin: file, ...rules }] of all) {
      const { limit, reserve } = rules
      const why = whyNotAName(name)
      if (why) refuse([name], why)
      if (origin !== undefined && file !== undefined) {
        refuse([name, 'external_origin'], 'nothing beside snapshot_of: a snapshot has its origin’s')
      }
      if (origin !== undefined) {
        if (!all.has(origin)) {
          refuse([name, 'snapshot_of'], 'the name of another volume in this file')
        } else if (circular.has(name)) {
          refuse([name, 'snapshot_of'], 'a volume that is not, by others, its own snapshot')
        }
      } else if (size === undefined && file === undefined) {
        refuse([name, 'size'], SIZE_FORMS)
      }
      if (limit !== undefined && reserve !== undefined && reserve > limit) {
        refuse([name, 'reserve'], 'no more than the limit')
      }
      if (id === undefined) continue
      const other = names.get(id)
      if (other !== undefined) refuse([name, 'id'], `an id that no other volume has: see ${other}`)
      names.set(id, name)
    }
  })

/** Volumes that are, by others, snapshots of themselves. */
function ownOrigins(all: Volumes): Set<string> {
  const circular = new Set<string>()
  /** Volumes seen, each with that from which they were reached first. */
  const seen = new Map<string, string>()
  for (const first of all.keys()) {
    let name: string | undefined = first
    for (; name !== undefined && !seen.has(name); name = all.get(name)?.snapshot_of) {
      seen.set(name, first)
    }
    if (name === undefined || seen.get(name) !== first) continue
    for (; !circular.has(name); name = all.get(name)!.snapshot_of!) circular.add(name)
  }
  return circular
}

/** Whether parts of a file overlap each other, or others. */
function overlap(parts: readonly Extent[], others: readonly Extent[]): boolean {
  const all = [...parts, ...others].sort((a, b) => a.offset - b.offset)
  return all.some(({ offset }, i) => i > 0 && offset < all[i - 1]!.offset + all[i - 1]!.size)
}

const POOL_NAME = /^[A-Za-z0-9][A-Za-z0-9._+-]{0,126}$/

/** The whole document, `volumes` as a Map: names such as `__proto__` and `1` are names there. */
export const POOL_YAML = map({
  pool: value('a name: up to 127 letters, digits and . _ + -, a letter or digit first', text =>
    POOL_NAME.test(text) ? text : undefined,
  ),
  data: map({
    path: storePath.optional(),
    nbd: nbdAddress.optional(),
    rbd: rbdName.optional(),
    size: size(`at least one data block: ${SIZE_FORMS}`, n => n > 0).optional(),
    extents: extents.optional(),
    autoextend: autoextend(SIZE_FORMS, n => n > 0),
  }).prefault({}),
  metadata: map({
    path: storePath.optional(),
    nbd: nbdAddress.optional(),
    rbd: rbdName.optional(),
    size: value('auto, or a size from 2M to 16646400K (15.88G)', text => {
      if (text === 'auto') return text
      const bytes = parseSize(text)
      return bytes >= METADATA_SIZE_MIN && bytes <= METADATA_SIZE_MAX ? bytes : undefined
    }).optional(),
    extents: extents.optional(),
    autoextend: autoextend(
      'a size from 2M to 16646400K (15.88G)',
      n => n >= METADATA_SIZE_MIN && n <= METADATA_SIZE_MAX,
    ),
  }).prefault({}),
  state: map({ nbd: nbdAddress.optional(), rbd: rbdName.optional() }).optional().meta({
    said: 'The disk with names and sizes of the volumes, and the record of which host has the pool, where metadata is on NBD or Ceph too: 16M. Default: none, files beside pool.yaml have that.',
  }),
  ceph: map({
    conf: value('an absolute path', text => (/^\/[^\0]+$/.test(text) ? text : undefined)).default(
      DEFAULTS.ceph.conf,
    ),
    user: value('a user as Ceph names it, without client. in front', text =>
      /^(?!client\.)[^\s/]+$/.test(text) ? text : undefined,
    ).default(DEFAULTS.ceph.user),
  }).optional(),
  cache: map({
    size: size(`at least 4M: ${SIZE_FORMS}`, n => n >= CACHE_SIZE_MIN)
      .default(DEFAULTS.cacheSize)
      .meta({ said: `How much memory it takes. Default: ${exactSize(DEFAULTS.cacheSize)}.` }),
    dirty: size(`at least 1M: ${SIZE_FORMS}`, n => n >= CACHE_DIRTY_MIN)
      .optional()
      .meta({
        said: 'How much of that may be acknowledged and not sent. Default: half of cache.size, which is the most.',
      }),
  })
    .optional()
    .meta({ said: 'Memory of this machine in front of data on NBD or Ceph.' }),
  tenancy,
  data_block_size: size(BLOCK_SIZES, isDataBlockSize).default(DEFAULTS.dataBlockSize),
  low_water_mark: lowWaterMark.default(DEFAULTS.lowWaterMark),
  discards: oneOf(DISCARDS).default(DEFAULTS.discards),
  on_full: oneOf(ON_FULL).default(DEFAULTS.onFull),
  queue_timeout: value(QUEUE_TIMEOUTS, text =>
    /^\d+$/.test(text) && isQueueTimeout(Number(text)) ? Number(text) : undefined,
  ).default(DEFAULTS.queueTimeout),
  min_free_space: percentage('a percentage from 0% to 99%, as in 10%', 0, 99).optional(),
  hooks: value('a command, as sh(1) takes it', text =>
    /^[^\0]*\S[^\0]*$/.test(text) ? text : undefined,
  ).optional(),
  transport: oneOf(TRANSPORTS).default(DEFAULTS.transport),
  spin: value(`microseconds from 0 to ${SPIN_MAX}`, text =>
    /^\d{1,4}$/.test(text) && Number(text) <= SPIN_MAX ? Number(text) : undefined,
  ).default(DEFAULTS.spin),
  spin_share: percentage('a percentage over 0, as in 80%', 0.01, 100).default(DEFAULTS.spinShare),
  volumes: volumes.prefault(new Map()),
}).superRefine((pool, context) => {
  if (pool.data.size !== undefined && pool.data.size < pool.data_block_size) {
    context.addIssue({
      code: 'custom',
      path: ['data', 'size'],
      message: 'at least one data block (data_block_size)',
    })
  }
  const refuse = (path: string[], message: string) =>
    context.addIssue({ code: 'custom', path, message })
  refuseKinds(pool, refuse)
  for (const key of ['data', 'metadata'] as const) {
    const { extents, size, autoextend } = pool[key]
    if (extents === undefined) continue
    const isSized = size !== undefined && size !== 'auto'
    if (isSized) refuse([key, 'size'], 'nothing beside extents, which have sizes')
    if (autoextend) refuse([key, 'autoextend'], 'nothing beside extents, which do not grow')
  }
  // A file and an export are never the same.
  if (kindOf(pool.data) !== 'path' || kindOf(pool.metadata) !== 'path') return
  const data = { ...pool.data, path: pool.data.path ?? DEFAULTS.dataPath }
  const metadata = { ...pool.metadata, path: pool.metadata.path ?? DEFAULTS.metadataPath }
  if (normalize(data.path) === normalize(metadata.path)) {
    const parts = [data.extents, metadata.extents]
    if (parts.includes(undefined)) {
      refuse(['metadata', 'path'], 'a file of its own, not that of the data')
    }
  }
  for (const [key, [one, other]] of Object.entries({
    data: [data, metadata],
    metadata: [metadata, data],
  } as const)) {
    const others = normalize(one.path) === normalize(other.path) ? (other.extents ?? []) : []
    if (one.extents !== undefined && overlap(one.extents, others)) {
      refuse([key, 'extents'], 'parts that do not overlap')
    }
  }
})

/** Where a store may be, by the key that says so. */
interface StoreKeys {
  path?: string | undefined
  nbd?: NbdAddress | undefined
  rbd?: RbdAddress | undefined
  size?: unknown
  extents?: unknown
  autoextend?: unknown
}

type StoreKind = 'path' | RemoteAddress['kind']

const kindOf = ({ nbd, rbd }: StoreKeys): StoreKind =>
  nbd !== undefined ? 'nbd' : rbd !== undefined ? 'rbd' : 'path'

/**
 * Which kinds of stores go together: all three on one kind of storage, or the data alone on another
 * machine.
 */
function refuseKinds(
  pool: {
    data: StoreKeys
    metadata: StoreKeys
    state?: StoreKeys | undefined
    ceph?: unknown
    cache?: { size: number; dirty?: number | undefined } | undefined
    tenancy?: { locks: string } | undefined
  },
  refuse: (path: string[], message: string) => void,
): void {
  const { data, metadata, state, cache } = pool
  const [ofData, ofMetadata] = [kindOf(data), kindOf(metadata)]
  for (const [key, store] of Object.entries({ data, metadata, state: state ?? {} })) {
    const kind = kindOf(store)
    if (kind === 'path') continue
    for (const other of ['path', 'rbd', 'size', 'extents', 'autoextend'] as const) {
      if (other === kind || store[other] === undefined) continue
      const what = kind === 'nbd' ? 'the export' : 'the image'
      refuse([key, other], `nothing beside ${kind}: ${what} has all of that`)
    }
  }
  if (ofMetadata === 'path') {
    if (state !== undefined) refuse(['state'], 'nothing without metadata.nbd or metadata.rbd')
  } else {
    const wanted = `the same kind as that of the metadata: ${ofMetadata}`
    const isUnsaid = ofData === 'path' && data.path === undefined
    if (ofData !== ofMetadata) refuse(isUnsaid ? ['data'] : ['data', ofData], wanted)
    const ofState = kindOf(state ?? {})
    if (ofState === 'path')
      refuse(['state'], `a map of ${ofMetadata}, beside metadata.${ofMetadata}`)
    else if (ofState !== ofMetadata) refuse(['state', ofState], wanted)
  }
  const seen = new Map<string, string>()
  for (const [key, store] of Object.entries({ data, metadata, state: state ?? {} })) {
    const kind = kindOf(store)
    const address = kind === 'path' ? undefined : store[kind]
    if (address === undefined) continue
    const id = addressId(address)
    if (seen.has(id)) refuse([key, kind], `another ${kind} than that of ${seen.get(id)}`)
    seen.set(id, key)
  }
  if (ofData === 'path' && cache !== undefined) {
    refuse(['cache'], 'nothing without data.nbd or data.rbd')
  }
  if (cache?.dirty !== undefined && cache.dirty > cache.size / 2) {
    refuse(['cache', 'dirty'], 'at most half of cache.size')
  }
  const hasImage = [ofData, ofMetadata].includes('rbd')
  if (pool.ceph !== undefined && !hasImage) refuse(['ceph'], 'nothing without rbd')
  if (pool.tenancy === undefined) return
  if (ofMetadata === 'rbd') refuse(['tenancy'], 'nothing with rbd: Ceph itself keeps a host away')
  else if (ofMetadata === 'path' && ofData !== 'path') {
    refuse(['tenancy'], 'nothing with the data alone on another machine')
  } else if (ofMetadata === 'nbd' && pool.tenancy.locks !== 'advisory') {
    refuse(['tenancy', 'locks'], 'advisory with nbd: a server has no locks')
  }
}
