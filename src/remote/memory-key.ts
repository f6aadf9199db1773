import { createHash } from 'node:crypto'

/**
 * Whether memory that outlives its process has the content of a disk. The first to ask decides, and
 * leaves the SHA-256 of the disk's name in the memory's header.
 * @param at where the header has 32 bytes for it
 * @param isFirst whether nobody has used the memory yet
 */
export function isOfDisk(header: DataView, at: number, path: string, isFirst: boolean): boolean {
  const key = createHash('sha256').update(path).digest()
  const has = Buffer.from(header.buffer, header.byteOffset + at, key.length)
  if (isFirst) key.copy(has)
  return has.equals(key)
}
