/** PoolConfig → the commented pool.yaml that `thinfs init` writes. */
import { isAbsolute, relative } from 'node:path'
import { type RemoteAddress, rbdName } from '../base/index.js'
import {
  type Autoextend,
  DEFAULTS,
  type Extent,
  type PoolConfig,
  type TenancyConfig,
  type VolumeConfig,
} from './pool-config.js'
import { exactSize } from './size.js'

/** The text of a pool.yaml that loads back equal, when written to `config.file`. */
export function renderConfig(config: PoolConfig): string {
  const { lowWaterMark: mark } = config
  return `# A pool of thin volumes. Sizes: bytes, or K, M, G, T (powers of 1024).
# Paths count from this file's folder. thinfs reads this file; thinfs extend writes the sizes below.
pool: ${scalar(config.pool)}

# Where the volumes' blocks are: a sparse file, or a block device. Free space takes none of the
# disk's. The size is the most that all volumes together can come to hold.
data:
${renderData(config)}

# The maps, in dm-thin's own format: thin_check, thin_dump and the kernel read it.
metadata:
${renderMetadata(config)}

# The unit of provisioning, sharing and discard. Fixed once the pool is made.
data_block_size: ${exactSize(config.dataBlockSize)}

# The pool reports that it wants space when no more than this is free: a size or a percentage.
low_water_mark: ${'bytes' in mark ? exactSize(mark.bytes) : `${mark.percent}%`}

# What becomes of discarded space: passdown gives it back to the host, nopassdown to the pool alone,
# ignore to nobody.
discards: ${config.discards}

# What a write does when no block is free: queue waits for space, error fails at once; and for how many
# seconds at most it waits (0: for ever). thinfs set changes both, also while the pool is mounted.
on_full: ${config.onFull}
queue_timeout: ${config.queueTimeout}

# What has to be free of data, and of metadata, for a volume to be made, or a snapshot taken, as Docker's
# dm.min_free_space has it. thinfs set changes it.
${config.minFreeSpace === undefined ? '# min_free_space: 10%   (now: 0%)' : `min_free_space: ${config.minFreeSpace}%`}

# A command for events: low water, full, other modes, growth, warnings. It has them in its environment,
# with the numbers: docs/OPERATIONS.md. It runs as the user of the mount.
${config.hooks === undefined ? `# hooks: logger -t thinfs "$THINFS_POOL_NAME $THINFS_EVENT"` : `hooks: ${scalar(config.hooks)}`}

# How requests come from the kernel: dev is /dev/fuse; uring is FUSE over io_uring, where the kernel has
# it: more requests a second, but the mount ends with the engine if that dies.
transport: ${config.transport}

# For how many microseconds at most the engine looks for the next request before it sleeps, where that
# pays (0: never), and the share of a CPU's time that it may spend so.
spin: ${config.spin}
spin_share: ${config.spinShare}%

# Volumes that the pool always has: made when it is opened without them. With the id of a device that
# another program made: its name. All others come and go with thinfs create, snapshot and remove.
volumes:${renderVolumes(config.volumes)}
`
}

function renderData(config: PoolConfig): string {
  const { data, cache } = config
  if (data.remote) {
    const { size, dirty } = cache!
    const most = dirty === undefined ? '' : `, dirty: ${exactSize(dirty)}`
    return `  ${renderRemote(data.remote)}

# Memory of this machine in front of it.
cache: { size: ${exactSize(size)}${most} }`
  }
  const sizes = data.extents
    ? renderExtents(data.extents)
    : renderSizes(renderDataSize(data.size), data, '1T')
  return `  path: ${scalar(shortPath(config, data.path))}\n${sizes}`
}

function renderMetadata(config: PoolConfig): string {
  const { metadata, state, ceph, tenancy } = config
  const { remote, extents } = metadata
  const place = remote ? renderRemote(remote) : `path: ${scalar(shortPath(config, metadata.path))}`
  const lines = [`  ${place}`]
  if (extents) lines.push(renderExtents(extents))
  else if (!remote) lines.push(renderSizes(renderMetadataSize(metadata.size), metadata, '1G'))
  if (state) {
    lines.push('\n# Names and sizes of the volumes, and which host has the pool.')
    lines.push(`state: { ${renderRemote(state.remote)} }`)
  }
  if (ceph) {
    lines.push('\n# The cluster; its ceph.conf says where the key of the user is.')
    lines.push(`ceph: { conf: ${scalar(ceph.conf)}, user: ${scalar(ceph.user)} }`)
  }
  if (tenancy) {
    lines.push('\n# How a host that has lost the pool is kept from writing.')
    lines.push(renderTenancy(tenancy))
  }
  return lines.join('\n')
}

const renderRemote = (remote: RemoteAddress): string =>
  remote.kind === 'nbd' ? `nbd: ${scalar(remote.text)}` : `rbd: ${scalar(rbdName(remote))}`

function renderTenancy({ locks, fence }: TenancyConfig): string {
  const fields = [`locks: ${locks}`]
  if (fence !== undefined) {
    // A word in braces would be a map.
    const words = fence.command.map(word => JSON.stringify(word)).join(', ')
    fields.push(`fence: { command: [${words}], timeout: ${fence.timeout}s }`)
  }
  return `tenancy: { ${fields.join(', ')} }`
}

/** @param max for the example, where there is no rule */
function renderSizes(
  size: string,
  { autoextend: rule }: { autoextend?: Autoextend },
  max: string,
): string {
  if (rule === undefined) {
    const { threshold, percent } = DEFAULTS.autoextend
    const example = `{ threshold: ${threshold}%, percent: ${percent}%, max: ${max} }`
    return `${size}\n  # autoextend: ${example}   (now: it does not grow by itself)`
  }
  const most = rule.max === null ? '' : `, max: ${exactSize(rule.max)}`
  return `${size}\n  autoextend: { threshold: ${rule.threshold}%, percent: ${rule.percent}%${most} }`
}

const renderDataSize = (size: number | null): string =>
  size === null ? '  # size: 100G   (now: as large as it is)' : `  size: ${exactSize(size)}`

const renderMetadataSize = (size: number | 'auto'): string =>
  `  size: ${size === 'auto' ? size : exactSize(size)}`

/** Parts of the file that are the pool's, in the order in which they follow each other. */
function renderExtents(extents: readonly Extent[]): string {
  const lines = extents.map(
    ({ offset, size }) => `\n    - { offset: ${exactSize(offset)}, size: ${exactSize(size)} }`,
  )
  return `  extents:${lines.join('')}`
}

function renderVolumes(volumes: Record<string, VolumeConfig>): string {
  const lines = Object.entries(volumes).map(([name, volume]) => {
    const { size, id, snapshotOf, externalOrigin, limit, reserve } = volume
    const fields = size === null ? [] : [`size: ${exactSize(size)}`]
    if (id !== undefined) fields.push(`id: ${id}`)
    if (snapshotOf !== undefined) fields.push(`snapshot_of: ${scalar(snapshotOf)}`)
    if (limit !== undefined) fields.push(`limit: ${exactSize(limit)}`)
    if (reserve !== undefined) fields.push(`reserve: ${exactSize(reserve)}`)
    if (externalOrigin !== undefined) fields.push(`external_origin: ${scalar(externalOrigin)}`)
    return `\n  ${scalar(name)}: { ${fields.join(', ')} }`
  })
  return lines.length > 0 ? lines.join('') : '\n  # web: { size: 10G }'
}

/** Relative when it is in or below pool.yaml's folder. */
function shortPath(config: PoolConfig, path: string): string {
  const short = relative(config.folder, path)
  return short === '' || /^\.\.(\/|$)/.test(short) || isAbsolute(short) ? path : short
}

/** Text as one line of YAML, quoted where it has to be: a JSON string is a YAML one. */
function scalar(text: string): string {
  return /^[A-Za-z0-9_./][A-Za-z0-9_./+-]*$/.test(text) ? text : JSON.stringify(text)
}
