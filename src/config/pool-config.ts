/** The content of pool.yaml, in bytes and absolute paths. */
import {
  CEPH_DEFAULTS,
  type CephAccess,
  KIB,
  MAX_METADATA_BLOCKS,
  METADATA_BLOCK_SIZE,
  MIB,
  type RemoteAddress,
} from '../base/index.js'

/** The files by which a command finds a pool, and its daemon. */
export interface PoolPlace {
  /** Absolute path of pool.yaml, symbolic links resolved. */
  file: string
  /** Its folder: volumes.json, journal, log and control socket live there. */
  folder: string
  /**
   * Set for another user's copy of a pool, which root only reads: his id. All of it has to be his.
   */
  ofUser?: number
}

export interface PoolConfig extends PoolPlace {
  /** The pool's name, for people. */
  pool: string
  /**
   * `size` null: as large as the file or device, or its extents. With `remote` another machine has
   * the data, and `path` is the text of its address.
   */
  data: {
    path: string
    size: number | null
    extents?: Extent[]
    autoextend?: Autoextend
    remote?: RemoteAddress
  }
  /**
   * `size` auto: as much as data of this size and block size can need; with `remote`, all that is
   * there.
   */
  metadata: {
    path: string
    size: number | 'auto'
    extents?: Extent[]
    autoextend?: Autoextend
    remote?: RemoteAddress
  }
  /** Names, sizes, and who has the pool: there with, and only with, metadata on another machine. */
  state?: { path: string; remote: RemoteAddress }
  /** The Ceph cluster that images are of. */
  ceph?: CephAccess
  /**
   * Memory in front of data that another machine has, and the bytes of it that are acknowledged and
   * not sent at most; left out: half of it.
   */
  cache?: { size: number; dirty?: number }
  /** How the storage keeps a host away that has lost the pool. */
  tenancy?: TenancyConfig
  dataBlockSize: number
  lowWaterMark: LowWaterMark
  /** Whether a discard frees the host's space too, only the pool's, or is refused. */
  discards: (typeof DISCARDS)[number]
  /** Whether a write that finds no free block waits for space or fails with ENOSPC. */
  onFull: (typeof ON_FULL)[number]
  /** Seconds that it waits at most; 0: for ever. */
  queueTimeout: number
  /** Percent of data, and of metadata, that has to be free for a new volume; left out: none. */
  minFreeSpace?: number
  /** The command that the daemon has sh(1) run for each event of the pool. */
  hooks?: string
  /**
   * How the kernel's requests come: by read(2) on /dev/fuse, through an io_uring, or by libfuse.
   */
  transport: (typeof TRANSPORTS)[number]
  /** The engine looks for the next request for at most so many microseconds before it sleeps. */
  spin: number
  /** The share of one CPU's time that may go by looking: percent, over 0 to 100. */
  spinShare: number
  /** By name. Made when the pool is opened without them; names for devices of another program. */
  volumes: Record<string, VolumeConfig>
}

export interface TenancyConfig {
  /**
   * What refuses the writes of a host that has lost the pool: the file system, by its locks; the
   * disks, by persistent reservations; nothing.
   */
  locks: (typeof LOCKS)[number]
  /** What keeps the old host from writing: exit status 0 says that it cannot any more. */
  fence?: FenceConfig
}

export interface FenceConfig {
  /** A program and its arguments, in which FENCE_WORDS stand for what is known. */
  command: string[]
  /** Seconds that it may take. */
  timeout: number
}

/** A part of a file that is the pool's, one of several behind each other. Bytes. */
export interface Extent {
  offset: number
  size: number
}

/** The rule by which data or metadata grow by themselves: that of LVM's thin pools. */
export interface Autoextend {
  /** Percent in use above which it grows, 50 to 99. */
  threshold: number
  /** Percent of its size by which it grows at least. */
  percent: number
  /** Bytes beyond which it does not grow; null: as far as the format and the host's disk go. */
  max: number | null
}

export interface VolumeConfig {
  /** Bytes; null: as large as its external origin. */
  size: number | null
  /** The device id, 0 to 2^24-1; without it the pool chooses one. */
  id?: number
  /** Name of the volume, another of the same file, to make it a snapshot of. */
  snapshotOf?: string
  /** Bytes that it may map at most, once it is made; left out: no limit. */
  limit?: number
  /** Bytes that the pool keeps for it, once it is made; left out: none. */
  reserve?: number
  /** Absolute path of the raw file that it shows where it maps nothing. */
  externalOrigin?: string
}

/** Free space at which the pool asks for more, absolute or as a share of the data size. */
export type LowWaterMark = { bytes: number } | { percent: number }

export const DISCARDS = ['passdown', 'nopassdown', 'ignore'] as const
export const ON_FULL = ['queue', 'error'] as const
export const LOCKS = ['enforced', 'reservations', 'advisory'] as const
/** What stands for itself in braces in the command of `fence`: of the host that has the pool. */
export const FENCE_WORDS = ['host', 'address', 'pool'] as const
export const TRANSPORTS = ['dev', 'uring', 'fuse-native'] as const

/** Values of keys that pool.yaml may leave out. */
export const DEFAULTS = {
  dataPath: 'data',
  metadataPath: 'metadata',
  /** LVM's percent; its threshold is 100, which is never: 80 is what Docker's guide sets. */
  autoextend: { threshold: 80, percent: 20 },
  dataBlockSize: 64 * KIB,
  cacheSize: 256 * MIB,
  ceph: CEPH_DEFAULTS,
  locks: 'advisory',
  fenceTimeout: 60,
  lowWaterMark: { percent: 20 } as LowWaterMark,
  discards: 'passdown',
  onFull: 'queue',
  queueTimeout: 60,
  transport: 'dev',
  spin: 400,
  spinShare: 80,
} as const

/** The sizes that isDataBlockSize allows, for people. */
export const BLOCK_SIZES =
  'a multiple of 64K from 64K to 1G, or 4K, 8K, 16K, 32K (those are readable by thinfs alone)'

/** The low water mark in data blocks, as dm-thin counts it, for a pool of `nrDataBlocks`. */
export function lowWaterMarkBlocks(
  config: Pick<PoolConfig, 'lowWaterMark' | 'dataBlockSize'>,
  nrDataBlocks: number,
): number {
  const mark = config.lowWaterMark
  return 'bytes' in mark
    ? Math.ceil(mark.bytes / config.dataBlockSize)
    : Math.ceil((nrDataBlocks * mark.percent) / 100)
}

/**
 * The size of metadata that is `auto`, in bytes: room for every data block to be mapped, and as
 * much again three times for snapshots to differ. A mapping takes 16 to 32 bytes. The file is
 * sparse: what is not needed takes no space.
 */
export function autoMetadataSize(dataSize: number, dataBlockSize: number): number {
  const wanted = (dataSize / dataBlockSize) * 32 * 4
  const size = Math.min(Math.max(wanted, 16 * MIB), MAX_METADATA_BLOCKS * METADATA_BLOCK_SIZE)
  return Math.ceil(size / METADATA_BLOCK_SIZE) * METADATA_BLOCK_SIZE
}
