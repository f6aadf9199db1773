/**
 * The kernel's io_uring structures, as far as they are used here.
 * Source: include/uapi/linux/io_uring.h of Linux 6.18.
 */
import { layout } from '../base/index.js'

export const OPERATION = { ASYNC_CANCEL: 14, READ: 22, URING_CMD: 46 } as const
/** Of ASYNC_CANCEL: all entries, whatever they are. */
export const CANCEL_ALL = 1
export const CANCEL_ANY = 4

/**
 * A submission entry; with 128 bytes an entry, the command of URING_CMD goes from `command` to its
 * end.
 */
export const SQE = layout('io_uring_sqe', 64, {
  opcode: [0, 'bytes:1', 'OPERATION'],
  flags: [1, 'bytes:1', 'zero'],
  ioprio: [2, 'bytes:2', 'zero'],
  fd: [4, 'i32', 'file'],
  off: [8, 'u64', 'bytes from its beginning; of URING_CMD the command'],
  addr: [16, 'u64', 'where bytes go to or come from'],
  len: [24, 'u32', 'how many'],
  opFlags: [28, 'u32', 'of the operation'],
  userData: [32, 'bytes:8', 'comes back with the completion'],
  bufIndex: [40, 'bytes:2', 'zero'],
  personality: [42, 'bytes:2', 'zero'],
  fileIndex: [44, 'u32', 'zero'],
  command: [48, 'bytes:16', 'zero, but for URING_CMD'],
})

export const CQE = layout('io_uring_cqe', 16, {
  userData: [0, 'bytes:8', "the entry's"],
  res: [8, 'i32', 'result, or a negative errno'],
  flags: [12, 'u32', ''],
})
