/** Bytes in one place of memory, or in several, in their order. */
export type Pieces = Uint8Array | readonly Uint8Array[]

export const piecesOf = (pieces: Pieces): readonly Uint8Array[] =>
  pieces instanceof Uint8Array ? [pieces] : pieces

export function lengthOf(pieces: readonly Uint8Array[]): number {
  let length = 0
  for (const piece of pieces) length += piece.length
  return length
}

/** From byte `at` of all of them to the end of the piece that has it. */
export function pieceAt(pieces: readonly Uint8Array[], at: number): Uint8Array {
  let begin = 0
  for (const piece of pieces) {
    if (at < begin + piece.length) return piece.subarray(at - begin)
    begin += piece.length
  }
  throw new RangeError(`byte ${at} of ${begin}`)
}

/** Bytes [from, to) of all of them. */
export function slicePieces(
  pieces: readonly Uint8Array[],
  from: number,
  to: number,
): readonly Uint8Array[] {
  const slices: Uint8Array[] = []
  for (let at = from; at < to; ) {
    const piece = pieceAt(pieces, at)
    slices.push(piece.subarray(0, to - at))
    at += piece.length
  }
  return slices
}

/** Copies all of them to `into`. */
export function copyPieces(pieces: readonly Uint8Array[], into: Uint8Array): void {
  let at = 0
  for (const piece of pieces) {
    into.set(piece, at)
    at += piece.length
  }
}

/** Copies `content`, which has all of their bytes, to where they belong. */
export function fillPieces(pieces: readonly Uint8Array[], content: Uint8Array): void {
  let begin = 0
  for (const piece of pieces) {
    piece.set(content.subarray(begin, begin + piece.length))
    begin += piece.length
  }
}
