import { readU64, ThinfsError } from '../base/index.js'

/** zstd, which is loaded when a stream needs it. */
export interface Codec {
  compress(bytes: Uint8Array): Uint8Array
  /** @throws BAD_STREAM when that is no frame of `length` bytes */
  decompress(frame: Buffer, length: number): Uint8Array
}

/** zstd's own default: three times as fast as a disk, and near what higher levels reach. */
const LEVEL = 3
const FRAME_MAGIC = 0xfd2fb528

export async function loadZstd(): Promise<Codec> {
  const { Zstd } = await import('@hpcc-js/wasm-zstd')
  const zstd = await Zstd.load()
  copyAtOnce(zstd)
  return {
    compress: bytes => zstd.compress(bytes, LEVEL),
    decompress(frame, length) {
      // Before anything is allocated for it.
      if (contentSize(frame) === length) {
        const bytes = zstd.decompress(frame)
        if (bytes.length === length) return bytes
      }
      throw new ThinfsError('BAD_STREAM', `a record of ${length} bytes is no zstd frame of them`)
    },
  }
}

/** A part of the package, private: another version may lack it. */
interface Heap {
  heapView(part: unknown): Uint8Array
  heapToUint8Array(part: unknown): Uint8Array
}

/**
 * Makes zstd copy results out of WebAssembly's memory at once. The package itself copies byte by
 * byte, some 5 ms for 64 KiB, which is far more than zstd takes.
 */
function copyAtOnce(zstd: object): void {
  const { _mainModule: heap } = zstd as { _mainModule?: Partial<Heap> }
  if (heap?.heapView === undefined) return
  heap.heapToUint8Array = part => heap.heapView!(part).slice()
}

/** The size that a frame says its content has; -1 where it says none. Source: RFC 8878, 3.1.1.1. */
function contentSize(frame: Buffer): number {
  if (frame.length < 18 || frame.readUInt32LE(0) !== FRAME_MAGIC) return -1
  const descriptor = frame[4]!
  const isSingle = (descriptor & 0x20) !== 0
  const at = 5 + (isSingle ? 0 : 1) + [0, 1, 2, 4][descriptor & 3]!
  switch (descriptor >> 6) {
    case 0:
      return isSingle ? frame[at]! : -1
    case 1:
      return frame.readUInt16LE(at) + 256
    case 2:
      return frame.readUInt32LE(at)
    default:
      return readU64(new DataView(frame.buffer, frame.byteOffset, frame.length), at)
  }
}
