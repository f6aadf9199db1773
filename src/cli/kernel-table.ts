import { statSync } from 'node:fs'
import { SECTOR_SIZE, ThinfsError } from '../base/index.js'
import type { Extent, PoolConfig } from '../config/index.js'
import { DEFAULTS } from '../config/index.js'
import type { PoolStatus, VolumeInfo } from '../volumes/index.js'
import { type Output, poolCommand, print } from './command.js'
import { configOf, withPool } from './pool.js'

/** Sectors of the smallest data block that the kernel takes; it takes multiples of it alone. */
const KERNEL_BLOCK_SECTORS = 128
/** Bytes that a device-mapper name has at most. Source: DM_NAME_LEN of linux/dm-ioctl.h. */
const NAME_BYTES = 127
/** The characters that libdevmapper writes into /dev/mapper unchanged. */
const PLAIN_NAME = /^[0-9A-Za-z#+\-.:=@_]+$/

export const table = poolCommand(
  'table',
  `Print the commands that activate an unmounted pool in the kernel: losetup, and dmsetup with a
thin-pool line, and a thin line for each volume.`,
  'thinfs table /srv/pool | sudo sh -e',
)
  .addHelpText(
    'after',
    `
The devices are POOL and POOL-VOLUME in /dev/mapper. The last line, a comment, ends them. A pool is
in the kernel or mounted here, never both: of a mounted pool all lines are comments. The kernel fills
new blocks with zeros: skip_block_zeroing would show what removed volumes held.`,
  )
  .action(async (pool: string, output: Output) => {
    const config = await configOf(pool, true)
    const activation = await withPool(pool, 'read', async admin => {
      const status = await admin.status()
      mustSuitKernel(config, status)
      // Refused where the journal has changes, which the kernel would not know of.
      if (status.mount === null) await admin.hold({ names: [] })
      return activationOf(config, status, await admin.list())
    })
    print(output, activation, scriptOf(activation).join('\n'))
  })

/** The devices that the kernel is asked to make. */
interface Activation {
  /** The pool's mount point; null if it is not mounted. */
  mountPoint: string | null
  metadata: Place
  data: Place
  pool: { name: string; line: string }
  volumes: { volume: string; name: string; line: string; externalOrigin: string | null }[]
  /** Warnings for the user, a sentence each. */
  notes: string[]
}

interface Place {
  path: string
  isDevice: boolean
  /** Parts of it that are the pool's; null: all of it. */
  extents: Extent[] | null
}

/** Stand for the devices in the lines. */
const METADATA = '$metadata'
const DATA = '$data'
const ORIGIN = '$origin'

function mustSuitKernel({ file, data, dataBlockSize }: PoolConfig, { refusal }: PoolStatus): void {
  if (data.remote) {
    const detail = `${data.path}: the kernel wants a disk; nbd-client(8) makes one of an export`
    throw new ThinfsError('NOT_SUPPORTED', detail)
  }
  if (refusal !== null) throw new ThinfsError('POOL_MISMATCH', refusal)
  if ((dataBlockSize / SECTOR_SIZE) % KERNEL_BLOCK_SECTORS === 0) return
  const what = `${file}: data blocks of ${dataBlockSize} bytes`
  throw new ThinfsError('NOT_SUPPORTED', `${what}: the kernel takes multiples of 64K alone`)
}

function activationOf(config: PoolConfig, status: PoolStatus, list: VolumeInfo[]): Activation {
  const name = config.pool
  const volumes = list
    .filter(({ size }) => size > 0)
    .map(({ name: volume, devId, size, externalOrigin }) => ({
      ...{ volume, name: deviceName(name, volume, devId), externalOrigin },
      line:
        `0 ${size / SECTOR_SIZE} thin /dev/mapper/${name} ${devId}` +
        (externalOrigin === null ? '' : ` ${ORIGIN}`),
    }))
  return {
    mountPoint: status.mount?.mountPoint ?? null,
    metadata: placeOf(config.metadata),
    data: placeOf(config.data),
    pool: { name, line: poolLine(status) },
    volumes,
    notes: notesOf(status),
  }
}

/** Features in the order in which the kernel prints them. */
function poolLine(status: PoolStatus): string {
  const { data, dataBlockSize, lowWaterMarkBlocks: mark, discards, onFull } = status
  const features = [
    ...(discards === 'ignore' ? ['ignore_discard'] : []),
    ...(discards === 'nopassdown' ? ['no_discard_passdown'] : []),
    ...(onFull === 'error' ? ['error_if_no_space'] : []),
  ]
  const block = dataBlockSize / SECTOR_SIZE
  const words = [data.blocks * block, 'thin-pool', METADATA, DATA, block, mark]
  return ['0', ...words, features.length, ...features].join(' ')
}

function notesOf({ needsCheck, onFull, queueTimeout }: PoolStatus): string[] {
  const notes: string[] = []
  if (needsCheck) {
    notes.push('needs_check is set: the kernel brings it up read-only; thinfs check clears it')
  }
  if (onFull === 'queue' && queueTimeout !== DEFAULTS.queueTimeout) {
    const parameter = '/sys/module/dm_thin_pool/parameters/no_space_timeout'
    notes.push(`queue_timeout, of all pools of the kernel: echo ${queueTimeout} > ${parameter}`)
  }
  return notes
}

/** Another name where device-mapper would write the volume's otherwise, or not have it. */
function deviceName(pool: string, volume: string, devId: number): string {
  const name = `${pool}-${volume}`
  const isPlain = PLAIN_NAME.test(name) && name.length <= NAME_BYTES
  return isPlain ? name : `${pool.slice(0, 100)}-thin-${devId}`
}

function placeOf({ path, extents }: { path: string; extents?: Extent[] }): Place {
  const isDevice = statSync(path, { throwIfNoEntry: false })?.isBlockDevice() ?? false
  return { path, isDevice, extents: extents ?? null }
}

/** The commands, for sh(1). */
function scriptOf({ mountPoint, metadata, data, pool, volumes, notes }: Activation): string[] {
  const disks = new Map<string, Disk>()
  for (const { path, isDevice } of [metadata, data]) {
    if (disks.has(path)) continue
    const variable = disks.size === 0 ? 'disk' : 'disk2'
    disks.set(path, { variable, path, isDevice })
  }
  const parts = [
    partLines('metadata', metadata, disks.get(metadata.path)!, `${pool.name}_tmeta`),
    partLines('data', data, disks.get(data.path)!, `${pool.name}_tdata`),
  ]
  const create = ({ name, line }: { name: string; line: string }): string =>
    `dmsetup create ${quoted(name)} --table "${line}"`
  const mapped = parts.flatMap(({ mapped }) => mapped ?? [])
  const devices = [...volumes, pool].map(({ name }) => quoted(name))
  const loops = [...disks.values()].filter(({ isDevice }) => !isDevice)
  const origins = [...new Set(volumes.flatMap(({ externalOrigin: path }) => path ?? []))].map(
    path => ({ path }),
  )
  const ends = [
    ...[['dmsetup', 'remove', ...devices, ...mapped].join(' ')],
    ...[...loops, ...origins].map(
      ({ path }) => `losetup --detach $(losetup -n -O NAME -j ${quoted(path)})`,
    ),
  ]
  const lines = [
    ...notes.map(comment),
    ...[...disks.values()].map(({ variable, path, isDevice }) =>
      isDevice
        ? `${variable}=${quoted(path)}`
        : `${variable}=$(losetup --find --show ${quoted(path)})`,
    ),
    ...parts.flatMap(({ lines }) => lines),
    create(pool),
    ...volumes.flatMap(device => {
      const { volume, externalOrigin: origin } = device
      const isOther = device.name !== `${pool.name}-${volume}`
      return [
        ...(isOther ? [comment(`the volume ${volume}:`)] : []),
        ...(origin === null
          ? []
          : [`origin=$(losetup --find --show --read-only ${quoted(origin)})`]),
        create(device),
      ]
    }),
    comment(`To end it: ${ends.join('; ')}`),
  ]
  if (mountPoint === null) return lines
  // A path may have ends of lines.
  const commented = lines.join('\n').split('\n').map(comment)
  return [comment(`The pool is mounted at ${mountPoint}: thinfs umount comes first.`), ...commented]
}

/** A file or device, and the variable that has its device. */
interface Disk {
  variable: string
  path: string
  isDevice: boolean
}

/**
 * Commands that put the device of a part of the pool into the variable `name`.
 * @param device the name of a device for parts of a larger one
 */
function partLines(
  name: string,
  { extents }: Place,
  { variable }: Disk,
  device: string,
): { lines: string[]; mapped: string | null } {
  if (extents === null) return { lines: [`${name}=$${variable}`], mapped: null }
  let start = 0
  const table = extents.map(({ offset, size }) => {
    const line = `${start} ${size / SECTOR_SIZE} linear $${variable} ${offset / SECTOR_SIZE}`
    start += size / SECTOR_SIZE
    return line
  })
  const lines = [`dmsetup create ${device} <<END`, ...table, 'END', `${name}=/dev/mapper/${device}`]
  return { lines, mapped: device }
}

const comment = (text: string): string =>
  text.startsWith('# ') ? text : `# ${text.replace(/\p{Cc}/gu, ' ')}`

/** As one word of sh(1). */
const quoted = (text: string): string =>
  /^[\w./+@:=-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`
