/**
 * INIT: what this end and the kernel agree on, once for the life of a connection.
 *
 * Left out on purpose: WRITEBACK_CACHE (a snapshot has to see every acknowledged write),
 * ATOMIC_O_TRUNC (a truncating open comes as SETATTR), AUTO_INVAL_DATA (our own writes change
 * mtime, and would throw away the page cache). HANDLE_KILLPRIV_V2 promises to drop set-user-id bits
 * on writing; without it the kernel asks for the xattr security.capability before every write.
 */
import { MAX_IO, MIB, PAGE_SIZE, ThinfsError } from '../base/index.js'
import {
  FUSE_KERNEL_MINOR_VERSION,
  FUSE_KERNEL_VERSION,
  INIT_FLAG,
  INIT_FLAG2,
  INIT_IN,
  INIT_OUT,
} from './abi.js'
import type { Slots } from './slots.js'

const MAX_IO_WITHOUT_MAX_PAGES = MIB / 8
/** Asynchronous requests under way: several loop devices with 128 requests each stay below. */
export const MAX_BACKGROUND = 512
/** Part of them from where on the kernel holds back. */
const CONGESTION = 0.75
/** INIT_OUT has its present size since then (Linux 3.15). */
const OLDEST_MINOR = 23

const FLAGS =
  INIT_FLAG.ASYNC_READ |
  INIT_FLAG.BIG_WRITES |
  INIT_FLAG.DO_READDIRPLUS |
  INIT_FLAG.ASYNC_DIO |
  INIT_FLAG.PARALLEL_DIROPS |
  INIT_FLAG.MAX_PAGES |
  INIT_FLAG.HANDLE_KILLPRIV_V2 |
  INIT_FLAG.INIT_EXT
const FLAGS2 = INIT_FLAG2.HAS_RESEND

/**
 * The outcome of INIT as plain JSON: a process that takes the connection over gets no other INIT.
 */
export interface Negotiated {
  /** Minor version of the protocol spoken. */
  minor: number
  flags: number
  flags2: number
  maxReadahead: number
  /** Bytes of the largest READ or WRITE. */
  maxWrite: number
  /** The speaker of the protocol where that is not thinfs; then the flags are libfuse's. */
  transport?: 'fuse-native'
  /** Why requests come through /dev/fuse where a ring was wanted. */
  whyDev?: string
}

/**
 * Chooses from what the kernel offers in the INIT at byte `base`.
 * @param upgrade a bit of flags2 that is wanted as well, or 0
 * @throws NOT_SUPPORTED, EPROTO, for a kernel before Linux 3.15
 */
export function negotiate(slots: Slots, base: number, upgrade: number): Negotiated {
  const at = base + slots.body
  const major = slots.u32(at + INIT_IN.at.major)
  const minor = slots.u32(at + INIT_IN.at.minor)
  if (major !== FUSE_KERNEL_VERSION || minor < OLDEST_MINOR) {
    const oldest = `${FUSE_KERNEL_VERSION}.${OLDEST_MINOR}`
    throw new ThinfsError('NOT_SUPPORTED', `FUSE ${major}.${minor}; the oldest is ${oldest}`, {
      errno: 'EPROTO',
    })
  }
  const flags = slots.u32(at + INIT_IN.at.flags) & FLAGS
  const extended = (flags & INIT_FLAG.INIT_EXT) !== 0
  return {
    minor: Math.min(minor, FUSE_KERNEL_MINOR_VERSION),
    flags,
    flags2: extended ? slots.u32(at + INIT_IN.at.flags2) & (FLAGS2 | upgrade) : 0,
    maxReadahead: slots.u32(at + INIT_IN.at.maxReadahead),
    maxWrite: (flags & INIT_FLAG.MAX_PAGES) !== 0 ? MAX_IO : MAX_IO_WITHOUT_MAX_PAGES,
  }
}

/**
 * Writes the answer to INIT. Returns its bytes.
 * @param maxBackground asynchronous requests that the kernel may have under way at a time
 */
export function encodeInit(
  slots: Slots,
  base: number,
  negotiated: Negotiated,
  maxBackground: number,
): number {
  const at = base + slots.payload
  slots.buffer.fill(0, at, at + INIT_OUT.size)
  INIT_OUT.write(slots.view, at, {
    major: FUSE_KERNEL_VERSION,
    minor: negotiated.minor,
    maxReadahead: negotiated.maxReadahead,
    flags: negotiated.flags,
    maxWrite: negotiated.maxWrite,
    timeGran: 1,
    flags2: negotiated.flags2,
  })
  slots.view.setUint16(at + INIT_OUT.at.maxBackground, maxBackground, true)
  slots.view.setUint16(at + INIT_OUT.at.congestionThreshold, maxBackground * CONGESTION, true)
  slots.view.setUint16(at + INIT_OUT.at.maxPages, negotiated.maxWrite / PAGE_SIZE, true)
  return INIT_OUT.size
}
