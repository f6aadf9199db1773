import { crc32c } from '@node-rs/crc32'

/**
 * Checksum of a metadata block: CRC-32C of all bytes but the first four, which hold it, without the
 * customary final inversion, xor the salt of the block's kind.
 */
export function checksum(block: Buffer, salt: number): number {
  return (~crc32c(block.subarray(4)) ^ salt) >>> 0
}
