/**
 * Space that the file systems below a pool's files can still give it. The files are sparse: a pool
 * that has room may stand on a disk that has none.
 */
import { bytes, isNoSpace, METADATA_BLOCK_SIZE, MIB } from '../base/index.js'
import type { DataBlocks } from '../device/index.js'
import type { ThinMetadata } from '../metadata/index.js'
import type { Store } from '../storage/index.js'

/** Metadata blocks that are set aside at a time: 1 MiB. */
const CHUNK = MIB / METADATA_BLOCK_SIZE
/** So much more room than when the host refused some is a reason to try again, in bytes. */
const MORE = MIB

export class HostSpace {
  readonly #blocks: DataBlocks
  readonly #store: Store
  readonly #metadata: ThinMetadata
  /** Metadata blocks below have their space on the host; infinite where it sets none aside. */
  #securedEnd = 0
  /** Why the host set no more space aside for metadata; null when it did. */
  #metadataFull: string | null = null
  /** Why a write to the data found no room; null when none did lately. */
  #dataFull: string | null = null
  /** Bytes that were available then. */
  #availableThen = 0

  constructor(blocks: DataBlocks, store: Store, metadata: ThinMetadata) {
    this.#blocks = blocks
    this.#store = store
    this.#metadata = metadata
    if (store.reserve === undefined) this.#securedEnd = Number.POSITIVE_INFINITY
  }

  /** Why the host has no room for data; null when it has, as far as is known. */
  get dataFull(): string | null {
    return this.#dataFull
  }

  /** Why the host has no room for metadata; null when it has. */
  get metadataFull(): string | null {
    return this.#metadataFull
  }

  /** Notes that a write to the data found no room on the host. */
  refused(err: unknown): void {
    this.#dataFull = `the host's disk is full: ${(err as Error).message}`
    this.#availableThen = this.#blocks.hostRoom()?.available ?? 0
  }

  /** Forgets that: a write found room, or may find some. */
  dataCame(): void {
    this.#dataFull = null
  }

  /** Whether the host has more room than when it refused some. A quota does not show there. */
  get hasMore(): boolean {
    const room = this.#blocks.hostRoom()
    return room !== undefined && room !== null && room.available >= this.#availableThen + MORE
  }

  /**
   * Bytes that free data blocks can get: the host's free space, and space that the file has kept.
   * Null where nothing grows.
   * @param usedBytes what data blocks with owners take at most
   */
  availableForData(usedBytes: number): number | null {
    const room = this.#blocks.hostRoom() ?? null
    return room && room.available + Math.max(0, room.allocated - usedBytes)
  }

  /** Bytes that the metadata file can get; null where that is no question. */
  get availableForMetadata(): number | null {
    return this.#store.hostRoom?.()?.available ?? null
  }

  /**
   * Reserves space on the host for more than `count` allocatable metadata blocks, so that a commit
   * finds room though its disk is full.
   * @returns false when the host has none
   */
  secures(count: number): boolean {
    const { nrMetadataBlocks, nrAllocatableMetadataBlocks } = this.#metadata
    // At most those that cannot be allocated are all below the end.
    const wanted = nrMetadataBlocks - nrAllocatableMetadataBlocks + count + 1
    const end = Math.min(wanted, nrMetadataBlocks)
    if (this.#securedEnd < end) this.#extend(end)
    return this.#securedEnd >= end
  }

  #extend(end: number): void {
    const { nrMetadataBlocks } = this.#metadata
    this.#metadataFull = null
    try {
      while (this.#securedEnd < end) {
        const next = Math.min(this.#securedEnd + CHUNK, nrMetadataBlocks)
        const length = (next - this.#securedEnd) * METADATA_BLOCK_SIZE
        const at = bytes(this.#securedEnd * METADATA_BLOCK_SIZE)
        const isReserved = this.#store.reserve!(at, bytes(length))
        this.#securedEnd = isReserved ? next : Number.POSITIVE_INFINITY
      }
    } catch (err) {
      // Other failures happen again, and are reported, when something is written there.
      if (isNoSpace(err)) this.#metadataFull = `the host's disk is full: ${(err as Error).message}`
      else this.#securedEnd = Number.POSITIVE_INFINITY
    }
    this.#metadata.preferMetadata(this.#securedEnd)
  }
}
