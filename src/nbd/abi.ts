/**
 * The numbers of the NBD protocol. All fields on the wire are big-endian.
 *
 * Source: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
 */

/** The bytes that a server begins with: `NBDMAGIC`, then `IHAVEOPT` in the newstyle negotiation. */
export const HELLO = Buffer.from('NBDMAGICIHAVEOPT', 'latin1')
/** Begins each option that a client sends. */
export const OPTION_MAGIC = Buffer.from('IHAVEOPT', 'latin1')
/** Begins each reply to an option. */
export const OPTION_REPLY_MAGIC = 0x0003_e889_0455_65a9n

export const SERVER_FLAG = { FIXED_NEWSTYLE: 1, NO_ZEROES: 2 } as const
export const CLIENT_FLAG = { FIXED_NEWSTYLE: 1, NO_ZEROES: 2 } as const

export const OPTION = {
  ABORT: 2,
  STARTTLS: 5,
  GO: 7,
  STRUCTURED_REPLY: 8,
  SET_META_CONTEXT: 10,
} as const

export const OPTION_REPLY = { ACK: 1, INFO: 3, META_CONTEXT: 4 } as const
/** Replies from here on are errors. */
export const OPTION_ERROR = 0x8000_0000

/** The meaning of the errors of options: an errno, and words for people. */
export const OPTION_ERRORS: Readonly<Record<number, readonly [errno: string, what: string]>> = {
  [OPTION_ERROR + 1]: ['EOPNOTSUPP', 'it does not know the option'],
  [OPTION_ERROR + 2]: ['EPERM', 'its policy forbids it'],
  [OPTION_ERROR + 3]: ['EINVAL', 'it calls the option invalid'],
  [OPTION_ERROR + 4]: ['EOPNOTSUPP', 'its platform lacks it'],
  [OPTION_ERROR + 5]: ['EPERM', 'it wants TLS'],
  [OPTION_ERROR + 6]: ['ENOENT', 'it has no such export'],
  [OPTION_ERROR + 7]: ['ESHUTDOWN', 'it is being shut down'],
  [OPTION_ERROR + 8]: ['EINVAL', 'it wants block sizes to be agreed on'],
  [OPTION_ERROR + 9]: ['EOVERFLOW', 'it finds the option too long'],
}

export const INFO = { EXPORT: 0, BLOCK_SIZE: 3 } as const

/** Transmission flags: what an export can do. */
export const EXPORT_FLAG = {
  READ_ONLY: 1 << 1,
  SEND_FLUSH: 1 << 2,
  SEND_FUA: 1 << 3,
  SEND_TRIM: 1 << 5,
  SEND_WRITE_ZEROES: 1 << 6,
  CAN_MULTI_CONN: 1 << 8,
} as const

export const REQUEST_MAGIC = 0x2560_9513
export const REQUEST_SIZE = 28
export const COMMAND = {
  READ: 0,
  WRITE: 1,
  DISCONNECT: 2,
  FLUSH: 3,
  TRIM: 4,
  WRITE_ZEROES: 6,
  BLOCK_STATUS: 7,
} as const
export const COMMAND_FLAG = { FUA: 1, NO_HOLE: 2 } as const

export const SIMPLE_REPLY_MAGIC = 0x6744_6698
export const SIMPLE_REPLY_SIZE = 16
export const CHUNK_MAGIC = 0x668e_33ef
export const CHUNK_SIZE = 20
/** The last chunk of a reply. */
export const CHUNK_DONE = 1
export const CHUNK = { NONE: 0, OFFSET_DATA: 1, OFFSET_HOLE: 2, BLOCK_STATUS: 5 } as const
/** Chunk types with this bit are errors. */
export const CHUNK_ERROR = 1 << 15

export const ALLOCATION_CONTEXT = 'base:allocation'
export const ALLOCATION = { HOLE: 1, ZERO: 2 } as const

/** Errors of requests. */
export const ERRNO: Readonly<Record<number, string>> = {
  1: 'EPERM',
  5: 'EIO',
  12: 'ENOMEM',
  22: 'EINVAL',
  28: 'ENOSPC',
  75: 'EOVERFLOW',
  95: 'EOPNOTSUPP',
  108: 'ESHUTDOWN',
}
