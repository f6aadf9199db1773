import { METADATA_BLOCK_SIZE } from '../base/index.js'
import type { PoolEvent } from '../control/index.js'
import type { PoolEvents, PoolMode, ThinPool } from '../pool/index.js'

/** Modes that are events of their own; all others are `mode`. */
const FULL: { readonly [M in PoolMode]?: string } = {
  out_of_data_space: 'full_data',
  out_of_metadata_space: 'full_metadata',
}

/** Events of a pool as the command of `hooks` in pool.yaml gets them: docs/OPERATIONS.md. */
export class HookEvents {
  readonly #command: string
  readonly #send: (event: PoolEvent) => void
  #pool: ThinPool | null = null
  /** Events before the pool was open: name and detail. */
  readonly #early: [name: string, detail: string][] = []

  /** @param send gives an event to whoever runs the command */
  constructor(command: string, send: (event: PoolEvent) => void) {
    this.#command = command
    this.#send = send
  }

  /** The pool is open: from now on its numbers are known. */
  opened(pool: ThinPool): void {
    this.#pool = pool
    for (const [name, detail] of this.#early.splice(0)) this.#tell(name, detail)
  }

  /** Events that go to the command as well as to another listener. */
  besides(events: PoolEvents): PoolEvents {
    return {
      ...events,
      mode: (mode, reason) => {
        events.mode(mode, reason)
        this.#tell(FULL[mode] ?? 'mode', reason ?? '')
      },
      lowWater: free => {
        events.lowWater(free)
        this.#tell('low_water_data', '')
      },
      lowWaterMetadata: free => {
        events.lowWaterMetadata(free)
        this.#tell('low_water_metadata', '')
      },
      extended: (part, size) => {
        events.extended(part, size)
        this.#tell(`extended_${part}`, '')
      },
      warning: what => {
        events.warning(what)
        this.#tell('warning', what)
      },
    }
  }

  #tell(name: string, detail: string): void {
    const pool = this.#pool
    if (pool === null) {
      this.#early.push([name, detail])
      return
    }
    const { metadata, mode, blockSize } = pool
    const numbers = {
      DATA_USED: metadata.nrAllocatedDataBlocks * blockSize,
      DATA_SIZE: metadata.nrDataBlocks * blockSize,
      METADATA_USED: metadata.nrAllocatedMetadataBlocks * METADATA_BLOCK_SIZE,
      METADATA_SIZE: metadata.nrMetadataBlocks * METADATA_BLOCK_SIZE,
      WRITES_WAITING: pool.space.writesWaiting,
    }
    const variables = { EVENT: name, DETAIL: detail, MODE: mode, ...numbers }
    this.#send({
      command: this.#command,
      variables: Object.fromEntries(
        Object.entries(variables).map(([key, value]) => [`THINFS_${key}`, String(value)]),
      ),
    })
  }
}
