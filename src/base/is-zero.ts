/** Whether the first `length` bytes are all zeros. */
export function isZero(bytes: Uint8Array, length = bytes.length): boolean {
  if (length === 0) return true
  // Bytes are all zeros when they begin with one and equal themselves moved by one.
  const view = Buffer.from(bytes.buffer, bytes.byteOffset, length)
  return view[0] === 0 && view.compare(view, 1, length, 0, length - 1) === 0
}
