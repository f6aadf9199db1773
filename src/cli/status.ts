import { METADATA_BLOCK_SIZE } from '../base/index.js'
import { formatSize, formatSizes } from '../config/index.js'
import type { PoolStatus } from '../volumes/index.js'
import { adviceFor } from './advice.js'
import { type Output, poolCommand, print } from './command.js'
import { withPool } from './pool.js'

interface Options extends Output {
  dm?: true
}

export const status = poolCommand(
  'status',
  'Show how a pool is: its mode, the space it has, where it is mounted.',
  'thinfs status /srv/pool --dm',
)
  .option('--dm', "the kernel's own status lines, as dmsetup status prints them, field by field")
  .action(async (pool: string, options: Options) => {
    const { table } = await import('./table.js')
    const status = whenMounted(await withPool(pool, 'read', admin => admin.status()))
    if (options.dm) print(options, status.dm, describeDm(status.dm, table))
    else print(options, status, table(describe(status)))
  })

function describe(status: PoolStatus): string[][] {
  const { data, metadata, mount, dataBlockSize: blockSize } = status
  const advice = adviceFor(status)
  const free = data.blocks - data.usedBlocks
  return [
    ['pool', status.name],
    ['mode', modeOf(status)],
    ...(status.needsCheck ? [['needs check', 'yes']] : []),
    ...(advice === null ? [] : [['to do', advice]]),
    ['mounted', mount ? `${mount.mountPoint}, ${servedBy(mount)}` : 'no'],
    ...(mount ? [['transport', transport(mount)]] : []),
    ...tenancy(status),
    ['volumes', String(status.volumes)],
    ['data', `${usage(data, blockSize)}, ${data.path}`],
    ...reserved(status),
    ...cached(status),
    ['data block', formatSize(blockSize)],
    ['metadata', `${usage(metadata, METADATA_BLOCK_SIZE)}, ${metadata.path}`],
    ['host', hostRoom(status)],
    ['low water', lowWater(status.lowWaterMarkBlocks, free, blockSize, status.belowLowWater)],
    ...metadataLowWater(status),
    ['discards', status.discards],
    ['on full', `${status.onFull}${queueing(status)}${waiting(status)}`],
    ...(status.minFreeSpace ? [['new volumes', `while ${status.minFreeSpace}% are free`]] : []),
    ...shrinking(status),
    ...status.warnings.map(what => ['warning', what]),
    ['transaction', String(status.transactionId)],
    ...(status.heldRoot ? [['metadata snapshot', `block ${status.heldRoot}`]] : []),
  ]
}

/**
 * The mode of a pool that is not mounted is the one that it would come up in: this command opened
 * it only to read it.
 */
function whenMounted(status: PoolStatus): PoolStatus {
  const { mount, refusal } = status
  if (mount !== null) return status
  if (refusal !== null)
    return { ...status, mode: 'fail', reason: `mounting it is refused: ${refusal}` }
  return status.needsCheck
    ? { ...status, reason: 'needs_check is set: mounting it checks all of its metadata' }
    : { ...status, mode: 'write', reason: null }
}

function modeOf({ mode, reason, mount, refusal }: PoolStatus): string {
  const when = mount === null && refusal === null ? `${mode}, when it is mounted` : mode
  return reason === null ? when : `${when}: ${reason}`
}

/** A daemon of an earlier thinfs does not tell. */
function metadataLowWater({
  metadata,
  metadataLowWaterMarkBlocks: mark,
  belowMetadataLowWater,
}: Partial<PoolStatus>): string[][] {
  if (metadata === undefined || mark === undefined) return []
  const free = metadata.blocks - metadata.usedBlocks
  const isReached = belowMetadataLowWater === true
  return [['of metadata', lowWater(mark, free, METADATA_BLOCK_SIZE, isReached)]]
}

/** @param free as the mark, in blocks */
function lowWater(mark: number, free: number, blockSize: number, isReached: boolean): string {
  const [at, left] = formatSizes(mark * blockSize, free * blockSize)
  return `${at}, ${isReached ? 'reached: ' : ''}${left} free`
}

/** A daemon of an earlier thinfs does not tell. */
function tenancy({ tenancy: has }: Partial<PoolStatus>): string[][] {
  if (!has) return []
  const { host, since, strength, generation } = has
  return [['tenancy', `${strength}: ${host} since ${timeText(since)}, generation ${generation}`]]
}

/** @param since seconds since 1970 */
const timeText = (since: number): string =>
  new Date(1000 * since)
    .toISOString()
    .replace('T', ' ')
    .replace(/\.\d+Z$/, ' UTC')

/** A daemon of an earlier thinfs does not tell. */
const reserved = ({ reservedBlocks = 0, dataBlockSize }: Partial<PoolStatus>): string[][] =>
  reservedBlocks === 0
    ? []
    : [['reserved', `${formatSize(reservedBlocks * dataBlockSize!)} of what is free`]]

/** Space that the file systems of the pool's files have left. */
function hostRoom({ data, metadata }: PoolStatus): string {
  const parts = [
    ...(data.hostFree === null ? [] : [`${formatSize(data.hostFree)} left for data`]),
    ...(metadata.hostFree === null ? [] : [`${formatSize(metadata.hostFree)} for metadata`]),
  ]
  return parts.join(', ') || 'block devices'
}

const queueing = ({ onFull, queueTimeout }: Partial<PoolStatus>): string => {
  if (onFull === 'error' || queueTimeout === undefined) return ''
  return queueTimeout === 0 ? ', for ever' : `, ${queueTimeout} s at most`
}

/** The cache before data on another machine. A daemon of an earlier thinfs does not tell. */
const cached = ({ cache, mount }: PoolStatus): string[][] => {
  if (!cache || mount === null) return []
  const [dirty, limit] = formatSizes(cache.dirtyBytes, cache.dirtyLimit)
  const waits =
    cache.writersWaiting === 0 ? '' : `; ${cache.writersWaiting} writes wait for the disk`
  return [['cache', `${dirty} of at most ${limit} not flushed${waits}`]]
}

/** While the data is made smaller. */
function shrinking({ shrink }: PoolStatus): string[][] {
  if (!shrink) return []
  const left = `${formatSize(shrink.left)} past that are in use`
  const waits = shrink.waits ? '; waits until thinfs send, delta or map has ended' : ''
  return [['shrinking', `to ${formatSize(shrink.data)}, ${left}${waits}`]]
}

const waiting = ({ writesWaiting }: PoolStatus): string =>
  writesWaiting === 0 ? '' : `: ${writesWaiting} writes wait for space`

const servedBy = ({ pid, enginePid }: NonNullable<PoolStatus['mount']>): string =>
  pid === null
    ? `process ${enginePid} alone: its daemon has died, thinfs mount takes over`
    : `process ${pid}`

const transport = ({ transport, whyDev }: NonNullable<PoolStatus['mount']>): string =>
  whyDev === null ? transport : `${transport}, not uring: ${whyDev}`

function usage(
  { usedBlocks, blocks }: { usedBlocks: number; blocks: number },
  blockSize: number,
): string {
  const percent = blocks === 0 ? '-' : ((usedBlocks / blocks) * 100).toFixed(2)
  const [used, has] = formatSizes(usedBlocks * blockSize, blocks * blockSize)
  return `${used} of ${has} (${percent}%)`
}

/** Meaning of the fields of a status line. Linux, Documentation/admin-guide/device-mapper. */
const LINE = ['start sector', 'sectors', 'target']
const POOL_LINE = [
  'transaction id',
  'used/total metadata blocks',
  'used/total data blocks',
  'held metadata root',
  'mode',
  'discards',
  'on full',
  'needs check',
  'metadata low water mark, blocks',
]
const THIN_LINE = ['mapped sectors', 'highest mapped sector']

type Columns = (rows: string[][]) => string

function describeDm(dm: PoolStatus['dm'], table: Columns): string {
  const parts = [
    describeLine('pool', dm.pool, POOL_LINE, table),
    ...dm.volumes.map(({ name, line }) => describeLine(name, line, THIN_LINE, table)),
  ]
  return parts.join('\n\n')
}

function describeLine(name: string, line: string, meanings: string[], table: Columns): string {
  const fields = line.trim().split(' ')
  // A pool that has failed says only that.
  const names = fields.length > LINE.length + 1 ? [...LINE, ...meanings] : [...LINE, 'state']
  const rows = fields.map((field, i) => [`  ${names[i]}`, field])
  return `${name}: ${line}\n${table(rows)}`
}
