/**
 * The room in a pool's metadata: how much of it a request may take so that a commit always finds
 * some, and what makes room.
 */
import { ThinfsError } from '../base/index.js'
import type { ThinMetadata } from '../metadata/index.js'
import type { CommitPipeline } from './commit-pipeline.js'
import type { HostSpace } from './host-space.js'
import { LowWater } from './low-water.js'
import type { PoolEvents } from './options.js'
import type { PoolState } from './pool-state.js'

/** The kernel's reserve: this part of the metadata, at most 4096 blocks, is kept for commits. */
const RESERVE_PART = 10
const RESERVE_MAX = 4096
/** The least that is kept back: a change and its commit shadow so many blocks. */
const RESERVE_MIN = 32
/** Metadata blocks that have their space on the host before mappings change; 1 MiB. */
const SECURED_MIN = 256
/** The same before something is unmapped, which the host's full disk must not prevent. */
const SECURED_TO_UNMAP = 64
/** Metadata blocks that mapping what a request has taken may still take. */
const MAPPING_COST = 16

const FULL =
  'what is free is kept for removals and discards; remove volumes or snapshots, or thinfs extend --metadata'

export interface MetadataRoomParts {
  metadata: ThinMetadata
  /** Names the metadata's store in messages. */
  path: string
  commits: CommitPipeline
  state: PoolState
  host: HostSpace
  events: PoolEvents
}

export class MetadataRoom {
  readonly #parts: MetadataRoomParts
  readonly #low: LowWater

  constructor(parts: MetadataRoomParts) {
    this.#parts = parts
    this.#low = new LowWater(free => parts.events.lowWaterMetadata(free))
  }

  // --- what there is; in metadata blocks ---

  get nrFree(): number {
    const { nrMetadataBlocks, nrAllocatedMetadataBlocks } = this.#parts.metadata
    return nrMetadataBlocks - nrAllocatedMetadataBlocks
  }

  /** The kernel's. */
  get lowWaterMark(): number {
    return Math.min(1024, Math.floor(this.#parts.metadata.nrMetadataBlocks / 4))
  }

  get belowLowWater(): boolean {
    return this.nrFree <= this.lowWaterMark
  }

  /** Takes note of how much is free: tells when that crosses the mark. */
  noteLow(): void {
    this.#low.note(this.nrFree, this.lowWaterMark)
  }

  /** Bytes that the host can still give to the metadata; null where that is no question. */
  get hostRoom(): number | null {
    return this.#parts.host.availableForMetadata
  }

  /** Blocks that are free but wait for a commit. */
  get nrFrozen(): number {
    return this.nrFree - this.#parts.metadata.nrAllocatableMetadataBlocks
  }

  /** Blocks kept back so that a commit always has room. */
  get reserve(): number {
    return Math.min(RESERVE_MAX, Math.floor(this.#parts.metadata.nrMetadataBlocks / RESERVE_PART))
  }

  /** The same, as far as requests are concerned: a small pool keeps more back. */
  get reserveOfRequests(): number {
    return Math.max(this.reserve, RESERVE_MIN)
  }

  // --- what a request may take ---

  /** Whether a request may change mappings, and a commit still has room afterwards. */
  get hasRoom(): boolean {
    return this.#has(1) && this.#parts.host.secures(SECURED_MIN)
  }

  /**
   * The same for unmapping, which takes blocks before it gives more back: half the reserve is its.
   */
  get hasRoomToUnmap(): boolean {
    return this.#has(1 / 2) && this.#parts.host.secures(SECURED_TO_UNMAP)
  }

  /**
   * The same for what takes blocks and is followed by an unmapping that gives more back: that has
   * its half of the reserve afterwards.
   */
  get hasRoomToReplace(): boolean {
    return this.hasRoomToReplaceBeside(0)
  }

  /** As `hasRoomToReplace`, with so many metadata blocks more that are taken. */
  hasRoomToReplaceBeside(blocks: number): boolean {
    return this.#has(7 / 8, blocks) && this.#parts.host.secures(SECURED_TO_UNMAP)
  }

  /**
   * Whether there is room for one unmapping, though the host may have none in reserve. Others may
   * unmap between two turns: whoever goes on after a wait asks again.
   */
  get canUnmap(): boolean {
    return this.#has(1 / 2)
  }

  /**
   * @param share of the reserve that has to be left
   * @param beside metadata blocks that have to be left, too
   */
  #has(share: number, beside = 0): boolean {
    const { metadata, commits } = this.#parts
    const free = metadata.nrAllocatableMetadataBlocks - beside
    return (
      !commits.stalled &&
      free > this.reserveOfRequests * share + commits.unmapped.count * MAPPING_COST
    )
  }

  // --- what makes room ---

  /**
   * Commits, for the metadata blocks that this frees.
   * @throws NO_METADATA_SPACE when that is not enough
   */
  async makeRoom(): Promise<void> {
    await this.#parts.commits.commit()
    this.mustHaveRoom(this.hasRoom)
  }

  /**
   * The same, until `canUnmap`. It commits even where the host reserves no space: that may free all
   * the room that can be had.
   */
  async makeRoomToUnmap(): Promise<void> {
    const { metadata, commits } = this.#parts
    // Blocks that others have unmapped since the commit take another one.
    do await commits.commit()
    while (!this.canUnmap && metadata.changed && !commits.stalled)
    this.mustHaveRoom(this.canUnmap)
  }

  /** @throws NO_METADATA_SPACE saying why, unless `has` */
  mustHaveRoom(has: boolean): void {
    if (has) return
    throw new ThinfsError('NO_METADATA_SPACE', `${this.#parts.path}: ${this.hostFull ?? FULL}`)
  }

  /** Why the host has no room for metadata; null when it has. */
  get hostFull(): string | null {
    const { commits, state, host } = this.#parts
    return commits.stalled ? state.reason : host.metadataFull
  }
}
