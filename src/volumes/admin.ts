/**
 * Commands on a pool, whether it is mounted (by way of its daemon) or not (on its files).
 *
 * All shapes are plain JSON: they cross the control socket and are what `--json` prints. Sizes are
 * bytes, times are seconds since 1970.
 */
import type { IoCounts } from '../base/index.js'
import type { PoolConfig } from '../config/index.js'
import type { PoolMode, PoolWork } from '../pool/index.js'
import type { CacheCounts } from '../storage/index.js'
import type { Strength } from '../tenancy/index.js'
import type { Rules } from './retention.js'

export interface VolumeInfo {
  name: string
  devId: number
  /** Virtual size. */
  size: number
  /** Bytes of the data blocks mapped, shared ones included. */
  mapped: number
  /**
   * Bytes of the data blocks that no other volume maps: what removing it gives back. Null unless
   * asked for: counting looks at every mapping.
   */
  exclusive: number | null
  /** Bytes that it may map at most; null: no limit. */
  limit: number | null
  /** Bytes that are kept for it in the pool; null: none. */
  reserve: number | null
  /** Whether its writes wait or fail when the pool is full; null: as the pool. */
  onFull: PoolConfig['onFull'] | null
  /** Seconds that its writes wait for space at most, 0: for ever; null: as the pool's. */
  queueTimeout: number | null
  /** Name of the volume it is a snapshot of, null for none or when that is gone. */
  origin: string | null
  /** Path of the file that it shows where it maps nothing; null for none. */
  externalOrigin: string | null
  /** Seconds since 1970, null when it is not known (made by another program). */
  created: number | null
  /** Whether a file descriptor or a loop device has it open. False when the pool is not mounted. */
  open: boolean
}

export interface PoolStatus {
  name: string
  mode: PoolMode
  /** Why the mode is not write, null when it is. */
  reason: string | null
  needsCheck: boolean
  transactionId: number
  dataBlockSize: number
  /** `hostFree`: bytes that the host can still give; null where that is no question. */
  data: { path: string; blocks: number; usedBlocks: number; hostFree: number | null }
  metadata: { path: string; blocks: number; usedBlocks: number; hostFree: number | null }
  /** Writes that wait for space. */
  writesWaiting: number
  /** Warnings of failures to come, a sentence each. */
  warnings: string[]
  /** Why it cannot be mounted to be written to; null where it can, or is. */
  refusal: string | null
  /**
   * While the data is made smaller: the bytes that it is to have, and those in use past them.
   * `waits` while somebody reads the pool's own files. A daemon of an earlier thinfs does not tell.
   */
  shrink?: { data: number; left: number; waits: boolean } | null
  /**
   * While the pool is checked: how far that has come. A daemon of an earlier thinfs does not tell.
   */
  check?: CheckProgress | null
  /**
   * Since the pool was mounted, of the cache before data on another machine; null where the data is
   * here. A daemon of an earlier thinfs does not tell.
   */
  cache?: CacheCounts | null
  lowWaterMarkBlocks: number
  /** Whether free data blocks are at or below the mark. */
  belowLowWater: boolean
  /** The same for metadata blocks, at the kernel's mark. */
  belowMetadataLowWater: boolean
  metadataLowWaterMarkBlocks: number
  heldRoot: number
  discards: PoolConfig['discards']
  onFull: PoolConfig['onFull']
  /** Seconds that writes wait for space at most; 0: for ever. */
  queueTimeout: number
  /** Percent of data, and of metadata, that has to be free for a new volume. */
  minFreeSpace: number
  volumes: number
  /** Free data blocks that are kept for volumes with a reserve. */
  reservedBlocks: number
  /** Its mount: the place, the time, and the processes; null when it is not mounted. */
  mount: {
    mountPoint: string
    /** Path of pool.yaml when it was mounted: what the mount table has. */
    source: string
    /** The daemon's; null when it has died and the engine serves without it. */
    pid: number | null
    since: number
    enginePid: number
    transport: PoolConfig['transport']
    /** Why it is dev where uring was wanted; null otherwise. */
    whyDev: string | null
    /** Path of its log; null: standard error. A daemon of an earlier thinfs does not tell. */
    logFile?: string | null
  } | null
  /**
   * The mount that may write to the pool, and by what nobody else does. Null for a pool without
   * tenancy, or one that is not mounted. A daemon of an earlier thinfs does not tell.
   */
  tenancy?: TenancyInfo | null
  /** The kernel's own status lines (dmsetup status), for the pool and for every volume. */
  dm: { pool: string; volumes: { name: string; line: string }[] }
}

export interface TenancyInfo {
  host: string
  /** When it acquired the pool: seconds since 1970. */
  since: number
  strength: Strength
  /** Tenants that the pool has had. */
  generation: number
}

/** Rules for the space of a volume. Sizes are bytes, 0: none. */
export interface VolumeRules {
  /** It may map no more. */
  limit?: number
  /** The pool keeps what it lacks of so many bytes of its own. */
  reserve?: number
  /** Whether its writes wait or fail when the pool is full; `pool`: as the pool's settings say. */
  onFull?: PoolConfig['onFull'] | 'pool'
  /** Seconds that its writes wait for space at most, 0: for ever; -1: as the pool's. */
  queueTimeout?: number
}

/** The work of a mounted pool, in counters that begin with the mount and only grow. */
export interface PoolStatistics {
  name: string
  mode: PoolMode
  /** When they were read: milliseconds since 1970. */
  time: number
  /** When they were 0: seconds since 1970. */
  since: number
  /** Engines that have taken another's place since then. */
  engineRestarts: number
  dataBlockSize: number
  /** As in `PoolStatus`. */
  data: { blocks: number; usedBlocks: number; hostFree: number | null }
  metadata: { blocks: number; usedBlocks: number; hostFree: number | null }
  lowWaterMarkBlocks: number
  metadataLowWaterMarkBlocks: number
  /** Writes that wait for space at the moment. */
  writesWaiting: number
  /** Requests for all volumes, those that are gone or have no name included. */
  io: IoCounts
  work: PoolWork
  /** As in `PoolStatus`. */
  cache?: CacheCounts | null
  /** Of a pool with tenancy; the counters begin with the engine. */
  tenancy?: TenancyStatistics
  /** Those that have a name, by name. */
  volumes: VolumeStatistics[]
}

export interface TenancyStatistics extends TenancyInfo {
  /** How often it was looked whether the pool is this mount's still, and milliseconds that took. */
  confirms: number
  confirmMs: number
  /** When the last sign of life was written: milliseconds since 1970. */
  signedAt: number
}

export interface VolumeStatistics {
  name: string
  devId: number
  /** Bytes, virtual and mapped. */
  size: number
  mapped: number
  open: boolean
  /** Null for a volume of which nothing was asked yet. */
  io: IoCounts | null
}

/** The owners of a pool's data blocks, in cells of neighbouring blocks. */
export interface BlockMap {
  dataBlockSize: number
  /** Of the pool. */
  blocks: number
  blocksPerCell: number
  /** Of each cell: blocks that are in use. */
  used: number[]
  /** Those of them that one volume has for itself; the others are shared, or no named volume's. */
  exclusive: number[]
  /** The volume that has the most of those, by its place in `volumes`; -1 for none. */
  owner: number[]
  /** Bytes that a volume maps, and that it has for itself. */
  volumes: { name: string; devId: number; mapped: number; exclusive: number }[]
}

/** The settings that may change while a pool is mounted. */
export interface PoolSettings {
  onFull?: PoolConfig['onFull']
  /** Seconds; 0: for ever. */
  queueTimeout?: number
  /** Percent. */
  minFreeSpace?: number
}

/** The name of a volume's content in streams, as long as its mappings have the fingerprint. */
export interface VolumeContent {
  id: string
  state: string
}

/** Volumes at one moment, for a reader in another process. */
export interface Held {
  /** The snapshot clock. */
  time: number
  transactionId: number
  dataBlockSize: number
  /** Data blocks of the pool. */
  dataBlocks: number
  /** In the order in which they were asked for. */
  volumes: HeldVolume[]
}

export interface HeldVolume {
  name: string
  devId: number
  size: number
  /** Bytes of the data blocks mapped. */
  mapped: number
  /** Metadata block of the root of its mapping tree. */
  root: number
  /**
   * A file in the mount that is open for a minute: as long as the reader has it open, neither the
   * tree nor the data blocks that it leads to change. Null where nothing can change.
   */
  file: string | null
  /** The name of the content in streams; null for one without. */
  content: string | null
  /** Path of its external origin; null for none. */
  externalOrigin: string | null
}

/** A volume that has no name yet. */
export interface NewVolume {
  devId: number
  /** A file in the mount that is open for a minute; the volume ends with its last descriptor. */
  file: string
  /** The volume that it began as a snapshot of; null for an empty one. */
  base: string | null
}

/** The part of a stream that came before it was cut short. */
export interface PartialVolume {
  /** The name that it is to have. */
  name: string
  size: number
  /** Bytes of the data blocks mapped. */
  mapped: number
  /** The name, in streams, of the content that it is to have. */
  content: string
  /** The same of what the stream goes on from; null for a full one. */
  base: string | null
  /** Bytes of the volume that are there. */
  offset: number
}

/** How far a check has come: blocks of metadata, then with `deep` bytes of data. */
export interface CheckProgress {
  part: 'metadata' | 'data'
  done: number
  /** An estimate: `done` may get larger. */
  all: number
}

export interface CheckProblem {
  severity: 'error' | 'warning'
  /** One sentence, names block numbers, found and wanted. */
  message: string
  /** Of an error: left out, what is there is damaged. */
  code?: 'POOL_MISMATCH' | 'IO_ERROR'
}

export interface CheckReport {
  problems: CheckProblem[]
  devices: number
  mappedBlocks: number
  usedDataBlocks: number
  usedMetadataBlocks: number
  /**
   * The result of a deep check; null without one, and when damaged metadata cannot tell what to
   * read.
   */
  data: DataReport | null
}

export interface DataReport {
  /** Bytes of mapped blocks that are no holes: all of them were read. */
  readBytes: number
  /** Mapped data blocks of which something could not be read. */
  unreadableBlocks: number
  /**
   * Free data blocks that hold something. Null where they may: without passdown, on a block device,
   * on a filesystem without holes, after anything but an orderly shutdown, and while the pool is
   * read-only.
   */
  strayBlocks: number | null
}

/**
 * An aborted `signal` says that no caller waits for the answer: work that has not begun is not
 * done.
 */
export interface PoolAdmin {
  /**
   * @param request.size bytes; with an external origin that of the file, where it is left out
   * @param request.externalOrigin path, absolute or from the pool's folder
   */
  create(
    request: { name: string; size?: number; devId?: number; externalOrigin?: string } & VolumeRules,
    signal?: AbortSignal,
  ): Promise<VolumeInfo>
  snapshot(
    request: { origin: string; name: string; devId?: number },
    signal?: AbortSignal,
  ): Promise<VolumeInfo>
  /**
   * Snapshots of several volumes, of one moment: each has its volume's name and the suffix.
   * @returns the snapshots, in the order of their volumes
   */
  snapshotAll(request: { origins: string[]; suffix: string }): Promise<VolumeInfo[]>
  /**
   * Puts a new snapshot of `snapshot` in the place of a volume, under the volume's name. All of it
   * is done, or nothing.
   * @param request.keep the name for what the volume was; left out, that is removed
   * @throws VOLUME_BUSY while the volume is open; VOLUME_EXISTS for `keep`
   */
  rollback(request: { name: string; snapshot: string; keep?: string }): Promise<VolumeInfo>
  remove(request: { names: string[] }, signal?: AbortSignal): Promise<void>
  /**
   * Removes snapshots of a volume, which are those named `NAME@…`, but for what the rules keep. One
   * that somebody uses stays, and says so.
   * @returns all of them, newest first, and snapshots of the volume that have other names
   * @throws BAD_ARGUMENT without a rule; VOLUME_MISSING for a volume of which there is nothing
   */
  prune(request: PruneRequest, signal?: AbortSignal): Promise<PrunedSnapshot[]>
  rename(request: { from: string; to: string }): Promise<VolumeInfo>
  /**
   * @param request.shrink may become smaller: data past the new end is cut off
   * @throws HAS_DATA, or BAD_ARGUMENT where nothing would be lost, for a smaller size without
   *   `shrink`; VOLUME_BUSY for one while it is open
   */
  resize(
    request: { name: string; size: number; shrink?: boolean },
    signal?: AbortSignal,
  ): Promise<VolumeInfo>
  /**
   * Counts what a volume has past a byte: what `resize` to that size would cut off.
   * @returns bytes of the blocks that are mapped there
   * @throws VOLUME_MISSING, BAD_ARGUMENT for a size that no volume can have
   */
  mappedPast(request: { name: string; size: number }): Promise<{ bytes: number }>
  /**
   * Makes the pool larger, its files too; what was made longer already counts as well. Asking twice
   * changes nothing.
   * @param request bytes; what is left out becomes as large as its file or device is
   * @returns the sizes that the pool has then, in bytes
   * @throws BAD_ARGUMENT for a size that cannot be had; NO_METADATA_SPACE
   */
  extend(request: { data?: number; metadata?: number }): Promise<{ data: number; metadata: number }>
  /**
   * Sets rules for the space of a volume; those that are left out stay.
   * @throws NO_DATA_SPACE for a reserve that the pool cannot give; BAD_ARGUMENT
   */
  setVolume(request: { name: string } & VolumeRules): Promise<VolumeInfo>
  /**
   * Makes the data of the pool smaller, its file too: moves what is in use above the new end.
   * Asking again goes on where the last one ended, whatever ended it.
   * @param request.data bytes, rounded up to whole blocks
   * @param request.dryRun moves nothing
   * @returns bytes that the data has, or would have, and that were moved, or would be
   * @throws NO_DATA_SPACE where what is in use does not fit; POOL_SHRINKING, SNAPSHOT_HELD,
   *   NOT_SUPPORTED, BAD_ARGUMENT
   */
  shrink(
    request: { data: number; dryRun?: boolean },
    signal?: AbortSignal,
  ): Promise<{ data: number; moved: number }>
  /** Sets what a full pool does from now on. Writes that wait for space try again, or fail. */
  set(request: PoolSettings): Promise<void>
  /**
   * @param request.exclusive counts what each volume has for itself
   * @param request.names only these, of which those that are not there are left out
   */
  list(request?: { exclusive?: boolean; names?: string[] }): Promise<VolumeInfo[]>
  /**
   * Counts what removing some volumes gives back, all of them together: the bytes of the data
   * blocks that nothing but these volumes maps. Approximate where mappings change meanwhile.
   */
  exclusive(request: { names: string[] }): Promise<{ bytes: number }>
  status(): Promise<PoolStatus>
  /** The counters of a mounted pool. Takes a few microseconds for each volume. */
  statistics(): Promise<PoolStatistics>
  /**
   * Tells who has the data blocks. Looks at all metadata, as `list` does that counts exclusive
   * space.
   * @param request.cells how many at most, 1 to 65536
   */
  blockMap(request: { cells: number }): Promise<BlockMap>
  /** A thin-pool target message in dm-thin's words, as `dmsetup message` takes it. */
  message(request: { message: string }): Promise<void>
  /** @param request.deep reads all data too */
  check(request: { deep?: boolean }): Promise<CheckReport>
  /**
   * Holds volumes as they are at this moment, where the pool can be written to by snapshots without
   * a name.
   * @param request.names or device ids
   * @param request.identify that of them whose content gets a name for streams if it has none
   */
  hold(request: { names: string[]; identify?: string }): Promise<Held>
  /**
   * Makes a volume that has no name until `nameVolume`.
   * @param request.name that it is to have
   * @param request.base what streams call the content that it begins with; left out, it is empty
   * @param request.content what they call the content that it is to have
   * @param request.resume goes on with one that was kept, at this byte
   * @throws NO_BASE; VOLUME_EXISTS, also for one that is kept and does not go on
   */
  beginVolume(request: {
    name: string
    size: number
    base?: string
    content?: string
    resume?: number
  }): Promise<NewVolume>
  /**
   * Makes what is in such a volume durable, and lets it stay, without its name, when its command
   * ends.
   * @throws VOLUME_MISSING
   */
  keepVolume(request: {
    devId: number
    name: string
    content: string
    base?: string
    offset: number
  }): Promise<void>
  /** Those that are kept. */
  partials(): Promise<PartialVolume[]>
  /** Gives the space of one that is kept back. @throws VOLUME_MISSING, VOLUME_BUSY */
  dropPartial(request: { name: string }): Promise<void>
  /**
   * Makes all of such a volume durable, and gives it its name.
   * @param request.content what streams call its content
   * @throws VOLUME_EXISTS, VOLUME_MISSING
   */
  nameVolume(request: { devId: number; name: string; content?: string }): Promise<void>
}

/** How many snapshots each rule keeps, see retention.ts. */
export interface PruneRequest extends Rules {
  name: string
  /** Names of snapshots that stay in any case, and that no rule counts. */
  except: string[]
  /** Only says what would go. */
  dryRun?: boolean
}

/** A snapshot that `prune` has looked at. */
export interface PrunedSnapshot {
  name: string
  /** Seconds since 1970; null when it is not known. */
  created: number | null
  /** Why it is kept: rules, or another reason. Empty for one that goes, or went. */
  kept: string[]
  /** Why it could not be removed and is still there; null otherwise. */
  busy: string | null
}

/** Faults that are injected into the requests for a volume. */
export interface Injection {
  name: string
  /** Ranges of bytes, [offset, length], in which a request fails with EIO. */
  readErrors: [number, number][]
  /** The same for writes, zeros and discards, which then change nothing. */
  writeErrors: [number, number][]
  /** Whether a flush is answered without being done. */
  ignoreFlushes: boolean
  /** Milliseconds that each request waits before it is carried out. */
  latencyMs: number
}

/** A recording of a volume's changes. */
export interface Recording {
  /** Name of the volume; when it is gone, the one that it had when recording began. */
  volume: string
  /** Name of the snapshot of the volume as it was when recording began; null when that is gone. */
  base: string | null
  /** Writes, discards, zeros, flushes and marks so far. */
  entries: number
  /** Bytes of its files. */
  bytes: number
  /** Its files, in the folder of pool.yaml. */
  log: string
  data: string
  /** Seconds since 1970. */
  started: number
  /** Why it has ended; null as long as it goes on. */
  ended: string | null
  /** Whether it cannot be relied on: the machine went down before it was durable. */
  lost: boolean
}

/** Faults and recordings of a mounted pool's volumes, for tests of programs on top of them. */
export interface LabAdmin {
  /**
   * Adds to what is injected into a volume; without anything to add, tells what is. Lasts until it
   * is cleared, or the pool unmounted.
   * @param request.clear nothing that was injected before stays
   * @param request.readErrors offset and length in turn
   * @param request.writeErrors the same
   */
  inject(request: {
    name: string
    clear?: boolean
    readErrors?: number[]
    writeErrors?: number[]
    ignoreFlushes?: boolean
    latencyMs?: number
  }): Promise<Injection>

  /**
   * Begins to record a volume, and takes a snapshot of it as it is then. Goes on with the next
   * engine of the mount; as long as it goes on nobody removes or resizes the volume.
   * @throws VOLUME_BUSY when it has a recording already
   */
  record(request: { name: string }, signal?: AbortSignal): Promise<Recording>
  /** Puts a mark into a recording. @throws NO_RECORDING, VOLUME_MISSING */
  mark(request: { name: string; mark: string }): Promise<Recording>
  /** Ends a recording, which is kept, durable. @throws NO_RECORDING, VOLUME_MISSING */
  stopRecording(request: { name: string }): Promise<Recording>
  /**
   * Removes a recording that has ended, and its snapshot.
   * @throws NO_RECORDING, VOLUME_BUSY when it goes on, or somebody has the snapshot open
   */
  removeRecording(request: { name: string }): Promise<void>
  /** All that are kept. */
  recordings(): Promise<Recording[]>
}

/** All commands on a mounted pool. */
export type MountedAdmin = PoolAdmin & LabAdmin
