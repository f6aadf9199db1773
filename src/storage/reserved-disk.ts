/**
 * Persistent reservations of SCSI and NVMe disks, by which the disk itself refuses the writes of
 * other hosts.
 *
 * A host registers with a key; then it reserves the disk. The type is "write exclusive, registrants
 * only": who is not registered may read and cannot write. All paths to the disk that a multipath
 * device registers may write; a host that looks for partitions or signatures gets no error. To
 * preempt a key ends its registration on all paths, and what they have under way, and moves the
 * reservation in the same step. Reservation and registrations survive a loss of power.
 *
 * Source: include/uapi/linux/pr.h; Documentation/block/pr.rst; SPC-4, 5.13.
 */
import { layout, ThinfsError } from '../base/index.js'
import { native } from '../native.js'

/** What a host registers with: 1 to 2^64 - 1. */
export type ReservationKey = bigint

/** PR_WRITE_EXCLUSIVE_REG_ONLY. */
const TYPE = 3
/** PR_FL_IGNORE_KEY: whatever key this host is registered with. */
const IGNORE_KEY = 1

// Keys are the host's 64-bit integers, which the kernel turns round for the disk.
const REGISTRATION = layout('pr_registration', 24, {
  oldKey: [0, 'bytes:8', 'the key that this host has; 0: none'],
  newKey: [8, 'bytes:8', 'the key that it gets; 0: none'],
  flags: [16, 'u32', 'IGNORE_KEY'],
  pad: [20, 'u32', 'zero'],
})
const RESERVATION = layout('pr_reservation', 16, {
  key: [0, 'bytes:8', 'of this host'],
  type: [8, 'u32', 'TYPE'],
  flags: [12, 'u32', 'zero'],
})
// The names are as the drivers take them, not as pr.rst has them: the first key is the host's own
// (sd_pr_preempt of drivers/scsi/sd.c, nvme_pr_preempt of drivers/nvme/host/pr.c).
const PREEMPTION = layout('pr_preempt', 24, {
  ownKey: [0, 'bytes:8', 'of this host; old_key of pr.h'],
  victim: [8, 'bytes:8', 'the key whose registrations end; new_key of pr.h'],
  type: [16, 'u32', 'TYPE'],
  flags: [20, 'u32', 'zero'],
})

/** REPLACE of an NVMe disk needs any. */
const SOME_KEY = 1n

/** A command of an NVMe disk. Source: linux/nvme_ioctl.h. */
const NVME_COMMAND = layout('nvme_passthru_cmd', 72, {
  opcode: [0, 'u8', ''],
  flags: [1, 'u8', 'zero'],
  pad: [2, 'u16', 'zero'],
  namespaceId: [4, 'u32', ''],
  dwords2: [8, 'bytes:8', 'zero'],
  metadata: [16, 'u64', 'zero'],
  data: [24, 'u64', 'its address'],
  metadataSize: [32, 'u32', 'zero'],
  dataSize: [36, 'u32', 'bytes'],
  dword10: [40, 'u32', 'what the command says'],
  dwords11: [44, 'bytes:20', 'zero'],
  timeout: [64, 'u32', 'milliseconds'],
  result: [68, 'u32', ''],
})
/** RESERVATION REGISTER, unregistering whatever the key is. Source: NVM Express, 7.3 of 2.0. */
const RESERVATION_REGISTER = 0x0d
const UNREGISTER = 0x01 | 0x08
/** Bytes of its data: the key that the host has, and the one that it gets. */
const KEYS_SIZE = 16

/** _IOW of asm-generic/ioctl.h. */
const writes = (type: number, number: number, size: number): number =>
  0x4000_0000 + size * 0x1_0000 + type * 0x100 + number
const pr = (number: number, { size }: { size: number }): number => writes(0x70, number, size)
const IOC_PR_REGISTER = pr(200, REGISTRATION)
const IOC_PR_RESERVE = pr(201, RESERVATION)
const IOC_PR_RELEASE = pr(202, RESERVATION)
const IOC_PR_PREEMPT_ABORT = pr(204, PREEMPTION)
const NVME_IOCTL_ID = 0x4e40
const NVME_IOCTL_IO_CMD = 0xc048_4e43
/** Writes back and drops what the page cache has of a device. Source: linux/fs.h. */
const BLKFLSBUF = 0x1261

/** SG_IO of scsi/sg.h, and its header on machines of 64 bits. */
const SG_IO = 0x2285
const SG_HEADER = layout('sg_io_hdr', 88, {
  interfaceId: [0, 'u32', 'S'],
  direction: [4, 'i32', '-3: from the disk'],
  commandSize: [8, 'u8', 'bytes'],
  senseSize: [9, 'u8', 'bytes'],
  nrVectors: [10, 'u16', 'zero'],
  dataSize: [12, 'u32', 'bytes'],
  data: [16, 'u64', 'its address'],
  command: [24, 'u64', 'its address'],
  sense: [32, 'u64', 'its address'],
  timeout: [40, 'u32', 'milliseconds'],
  flags: [44, 'u32', 'zero'],
  packId: [48, 'u32', 'zero'],
  pad: [52, 'u32', 'zero'],
  user: [56, 'u64', 'zero'],
  status: [64, 'u8', 'of the disk'],
  maskedStatus: [65, 'u8', 'the same without its lowest bit'],
  messageStatus: [66, 'u8', 'unused'],
  senseWritten: [67, 'u8', 'bytes'],
  hostStatus: [68, 'u16', 'of the way to the disk'],
  driverStatus: [70, 'u16', 'of the kernel'],
  rest: [72, 'i32', 'bytes of data that did not come'],
  duration: [76, 'u32', 'milliseconds'],
  info: [80, 'u32', 'whether anything was wrong'],
  pad2: [84, 'u32', 'zero'],
})
/** PERSISTENT RESERVE IN, READ RESERVATION. Source: SPC-4, 6.15. */
const READ_RESERVATION = [0x5e, 0x01, 0, 0, 0, 0, 0, 0, 24, 0]
const COMMAND_SIZE = 16
/** Bytes of the answer: generation, how much follows; key, scope and type of the reservation. */
const ANSWER_SIZE = 24
const SENSE_SIZE = 96
/** As the kernel has it for the other commands. */
const TIMEOUT_MS = 30_000

/** CHECK CONDITION of a SCSI disk, which once tells of what happened before: SAM-5, 5.3.1. */
const CHECK_CONDITION = 0x02
/**
 * RESERVATION CONFLICT of a SCSI disk, and of an NVMe disk before Linux 6.4 (its bit 14: for good).
 */
const isConflict = (status: number): boolean =>
  (status & 0xff) === 0x18 || (status & 0x7ff) === 0x83
/** Attempts: a disk may have as many things to tell, each once. */
const ATTEMPTS = 8

/** A disk that keeps reservations, by the descriptor of another that stays open. */
export class ReservedDisk {
  readonly path: string
  readonly #fd: number

  /** @param fd of the whole disk, open for writing; the caller's to close */
  constructor(path: string, fd: number) {
    this.path = path
    this.#fd = fd
  }

  /**
   * Registers this host, whatever its key was.
   * @throws NOT_SUPPORTED where the disk, or what is there, knows no reservations; IO_ERROR
   */
  async register(key: ReservationKey): Promise<void> {
    if (await this.#register(0n, key)) return
    // To the kernel no old key is a host that is not registered yet, which an NVMe disk minds.
    if (!(await this.#register(SOME_KEY, key))) throw this.#refused('register')
  }

  #register(oldKey: ReservationKey, newKey: ReservationKey): Promise<boolean> {
    const argument = record(REGISTRATION, { flags: IGNORE_KEY }, { oldKey, newKey })
    return this.#call('registering', IOC_PR_REGISTER, argument)
  }

  /**
   * Reserves the disk. Nothing changes where this host has reserved it with this key.
   * @returns false when another host has it, or has preempted this one
   * @throws IO_ERROR
   */
  reserve(key: ReservationKey): Promise<boolean> {
    return this.#call('reserving', IOC_PR_RESERVE, record(RESERVATION, { type: TYPE }, { key }))
  }

  /**
   * Ends the registrations of a key, and what they have under way. Where one of them has the
   * reservation, this host has it then.
   * @returns false when nobody is registered with `victim`, or this host is not with `key`
   * @throws IO_ERROR
   */
  preempt(key: ReservationKey, victim: ReservationKey): Promise<boolean> {
    const argument = record(PREEMPTION, { type: TYPE }, { ownKey: key, victim })
    return this.#call('preempting', IOC_PR_PREEMPT_ABORT, argument)
  }

  /** Gives up the reservation and the registration of this host. @throws IO_ERROR */
  async release(key: ReservationKey): Promise<void> {
    await this.#call('releasing', IOC_PR_RELEASE, record(RESERVATION, { type: TYPE }, { key }))
    const namespaceId = await native.file_ioctl_async(this.#fd, NVME_IOCTL_ID, 0).catch(() => 0)
    if (namespaceId === 0) await this.#register(0n, 0n)
    else await this.#unregister(namespaceId)
  }

  /** Ends the registration with an NVMe disk, for which the kernel has no call. */
  async #unregister(namespaceId: number): Promise<void> {
    // One buffer, which the call keeps where it is.
    const request = Buffer.alloc(NVME_COMMAND.size + KEYS_SIZE)
    const view = new DataView(request.buffer, request.byteOffset, request.length)
    NVME_COMMAND.write(view, 0, {
      opcode: RESERVATION_REGISTER,
      namespaceId,
      data: native.buffer_address(request) + NVME_COMMAND.size,
      dataSize: KEYS_SIZE,
      dword10: UNREGISTER,
      timeout: TIMEOUT_MS,
    })
    await this.#call('unregistering', NVME_IOCTL_IO_CMD, request)
  }

  /**
   * The key of the host that has the disk.
   * @returns null when nobody has it; undefined where only a SCSI disk could tell
   * @throws IO_ERROR
   */
  async holder(): Promise<ReservationKey | null | undefined> {
    let failure = ''
    for (let n = 0; n < ATTEMPTS; n++) {
      // One buffer, which the call keeps where it is.
      const request = Buffer.alloc(SG_HEADER.size + COMMAND_SIZE + SENSE_SIZE + ANSWER_SIZE)
      const command = SG_HEADER.size
      const sense = command + COMMAND_SIZE
      const answer = sense + SENSE_SIZE
      request.set(READ_RESERVATION, command)
      const view = new DataView(request.buffer, request.byteOffset, request.length)
      const address = native.buffer_address(request)
      SG_HEADER.write(view, 0, {
        interfaceId: 'S'.charCodeAt(0),
        direction: -3,
        commandSize: READ_RESERVATION.length,
        senseSize: SENSE_SIZE,
        dataSize: ANSWER_SIZE,
        data: address + answer,
        command: address + command,
        sense: address + sense,
        timeout: TIMEOUT_MS,
      })
      try {
        await native.file_ioctl_async(this.#fd, SG_IO, request)
      } catch {
        return undefined
      }
      const { status, hostStatus } = SG_HEADER.read(view, 0)
      if (status === 0 && hostStatus === 0) {
        return request.readUInt32BE(answer + 4) === 0 ? null : request.readBigUInt64BE(answer + 8)
      }
      failure = `status ${status}, of the way there ${hostStatus}`
      if (status !== CHECK_CONDITION) break
    }
    throw this.#failed('reading the reservation', failure)
  }

  /**
   * Drops what this host's page cache has of the disk: another host may have written to it since.
   */
  async dropCache(): Promise<void> {
    await this.#call('dropping its cache', BLKFLSBUF, 0)
  }

  /** @returns false for a conflict */
  async #call(what: string, command: number, argument: Buffer | number): Promise<boolean> {
    for (let n = 1; ; n++) {
      let status: number
      try {
        status = await native.file_ioctl_async(this.#fd, command, argument)
      } catch (err) {
        const { code } = err as NodeJS.ErrnoException
        if (code !== undefined && NO_RESERVATIONS.has(code)) throw this.#refused(code, err)
        // Later kernels have an errno for the conflict.
        if (code === 'EBADE') return false
        throw this.#failed(what, (err as Error).message, err)
      }
      if (status === 0) return true
      if (isConflict(status)) return false
      if (status !== CHECK_CONDITION || n === ATTEMPTS) throw this.#failed(what, `status ${status}`)
    }
  }

  #refused(why: string, cause?: unknown): ThinfsError {
    const what = `${this.path}: no persistent reservations there (${why})`
    const wanted = 'they need root and a whole SCSI or NVMe disk, or a multipath device of such'
    return new ThinfsError('NOT_SUPPORTED', `${what}: ${wanted}`, { cause })
  }

  #failed(what: string, why: string, cause?: unknown): ThinfsError {
    return new ThinfsError('IO_ERROR', `${this.path}: ${what}: ${why}`, { cause })
  }
}

/** Of a file, of a disk without reservations, of a partition or a user who is not root. */
const NO_RESERVATIONS = new Set(['ENOTTY', 'EINVAL', 'EOPNOTSUPP', 'EPERM', 'EACCES'])

/** A structure with numbers, and keys at the places of `bytes:8`. */
function record(
  { size, at, write }: ReturnType<typeof layout>,
  numbers: Record<string, number>,
  keys: Record<string, ReservationKey>,
): Buffer {
  const buffer = Buffer.alloc(size)
  write(new DataView(buffer.buffer, buffer.byteOffset, size), 0, numbers as Record<string, never>)
  for (const [name, key] of Object.entries(keys)) buffer.writeBigUInt64LE(key, at[name]!)
  return buffer
}
