import { bytes, METADATA_BLOCK_SIZE, ThinfsError } from '../../base/index.js'
import type { Store } from '../../storage/index.js'
import { Block, type BlockKind } from '../blocks/block.js'
import { stamp } from '../blocks/block-cache.js'

/** Blocks that one write to the store takes at most. */
const RUN_BLOCKS = 64

/** Writes blocks one behind the other. */
export class BlockWriter {
  /** Blocks that the store may have. */
  readonly nrBlocks: number
  readonly #store: Store
  readonly #run = Buffer.allocUnsafe(RUN_BLOCKS * METADATA_BLOCK_SIZE)
  /** The block that comes next. */
  #next: number
  /** The first block that is in `#run` and not in the store. */
  #first: number

  /** @param first the first block to write */
  constructor(store: Store, first: number, nrBlocks: number) {
    this.#store = store
    this.#next = first
    this.#first = first
    this.nrBlocks = nrBlocks
  }

  get next(): number {
    return this.#next
  }

  /**
   * Writes a block's content, with location and checksum, behind the last one.
   * @param content 4096 bytes, of which the first 16 are changed
   * @returns its number
   * @throws NO_METADATA_SPACE
   */
  append(kind: BlockKind, content: Buffer): number {
    const nr = this.#next
    if (nr >= this.nrBlocks) {
      const found = `${this.#store.path}: ${this.nrBlocks} metadata blocks are too few`
      throw new ThinfsError('NO_METADATA_SPACE', found)
    }
    stamp(new Block(nr, kind, content))
    content.copy(this.#run, (nr - this.#first) * METADATA_BLOCK_SIZE)
    this.#next++
    if (this.#next - this.#first === RUN_BLOCKS) this.flush()
    return nr
  }

  /** Reads a block that was written. */
  read(nr: number, kind: BlockKind): Block {
    const block = new Block(nr, kind, Buffer.allocUnsafeSlow(METADATA_BLOCK_SIZE))
    if (nr >= this.#first) {
      const at = (nr - this.#first) * METADATA_BLOCK_SIZE
      this.#run.copy(block.bytes, 0, at, at + METADATA_BLOCK_SIZE)
    } else {
      this.#store.read(block.bytes, 0, METADATA_BLOCK_SIZE, bytes(nr * METADATA_BLOCK_SIZE))
    }
    return block
  }

  /** Puts all that was appended into the store. */
  flush(): void {
    const length = (this.#next - this.#first) * METADATA_BLOCK_SIZE
    if (length > 0) {
      this.#store.write(this.#run, 0, length, bytes(this.#first * METADATA_BLOCK_SIZE))
    }
    this.#first = this.#next
  }
}
