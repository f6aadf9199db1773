/**
 * The loop devices that are the block devices of the service: `/dev/loopN` over the engine's file
 * `dm-N`.
 *
 * Every call that could wait for the engine runs on a thread. Source: loop(4),
 * include/uapi/linux/loop.h, drivers/block/loop.c.
 */
import { open } from 'node:fs/promises'
import { errnoOf, layout, SECTOR_SIZE, viewOf } from '../base/index.js'
import { native } from '../native.js'

const LOOP_CTL_ADD = 0x4c80
const LOOP_CTL_REMOVE = 0x4c81
const LOOP_CLR_FD = 0x4c01
const LOOP_SET_STATUS64 = 0x4c04
const LOOP_GET_STATUS64 = 0x4c05
const LOOP_SET_CAPACITY = 0x4c07
const LOOP_CONFIGURE = 0x4c0a
const BLKROSET = 0x125d
const LO_FLAGS_AUTOCLEAR = 4
const LO_FLAGS_DIRECT_IO = 16
/** Errors of opening a loop device that is not there, and of its ioctls. */
const GONE = ['ENXIO', 'ENOENT', 'ENODEV']
const ATTACH_TRIES = 20
/** The major number of loop devices, and for our clients that of device-mapper. */
export const LOOP_MAJOR = 7

const LOOP_INFO = layout('loop_info64', 232, {
  device: [0, 'u64', 'of the file'],
  inode: [8, 'u64', 'of the file'],
  rdevice: [16, 'u64', ''],
  offset: [24, 'u64', 'bytes'],
  sizelimit: [32, 'u64', 'bytes'],
  number: [40, 'u32', ''],
  encryptType: [44, 'u32', ''],
  encryptKeySize: [48, 'u32', ''],
  flags: [52, 'u32', ''],
  fileName: [56, 'bytes:64', ''],
  cryptName: [120, 'bytes:64', ''],
  encryptKey: [184, 'bytes:32', ''],
  init: [216, 'bytes:16', ''],
})
const LOOP_CONFIG = layout('loop_config', 304, {
  fd: [0, 'u32', ''],
  blockSize: [4, 'u32', ''],
  info: [8, 'bytes:232', 'loop_info64'],
  reserved: [240, 'bytes:64', ''],
})

export const loopPath = (minor: number): string => `/dev/loop${minor}`

/** The result of a removal. */
export type Detached = 'gone' | 'in use'

/** Loop devices as the device table needs them; `KernelLoops` are the real ones. */
export interface Loops {
  /** Makes `/dev/loopMINOR` over the engine's file. @throws EBUSY when it is somebody's */
  attach(minor: number): Promise<void>
  /**
   * Takes it away if nobody has it open. Otherwise it stays, and with `deferred` the kernel takes
   * it away with its last close.
   */
  detach(minor: number, deferred: boolean): Promise<Detached>
  /** Makes it again if it is not there. */
  ensure(minor: number): Promise<void>
  /** The kernel does not take it away any more. @throws EBUSY when it has */
  keep(minor: number): Promise<void>
  /** Takes the size of the file, and whether it can be written to. */
  update(minor: number, readOnly: boolean): Promise<void>
  /** Writes what the kernel has cached of it. */
  sync(minor: number): Promise<void>
}

export class KernelLoops implements Loops {
  readonly #folder: string

  /** @param folder where the engine's files are */
  constructor(folder: string) {
    this.#folder = folder
  }

  async attach(minor: number): Promise<void> {
    for (let left = ATTACH_TRIES; ; left--) {
      try {
        return await this.#attach(minor)
      } catch (err) {
        // Somebody has removed one of the same number meanwhile.
        if (!GONE.includes(errnoOf(err)) || left === 0) throw err
      }
    }
  }

  async #attach(minor: number): Promise<void> {
    await onControl(LOOP_CTL_ADD, minor).catch(err => {
      // Somebody has made it and may not use it: to configure it tells.
      if (errnoOf(err) !== 'EEXIST') throw err
    })
    const file = await open(`${this.#folder}/dm-${minor}`, 'r+')
    try {
      const bytes = Buffer.alloc(LOOP_CONFIG.size)
      LOOP_CONFIG.write(viewOf(bytes), 0, { fd: file.fd, blockSize: SECTOR_SIZE })
      LOOP_INFO.write(viewOf(bytes), LOOP_CONFIG.at.info, { flags: LO_FLAGS_DIRECT_IO })
      await onLoop(minor, fd => native.file_ioctl_async(fd, LOOP_CONFIGURE, bytes))
    } finally {
      await file.close()
    }
  }

  async detach(minor: number, deferred: boolean): Promise<Detached> {
    try {
      await onLoop(minor, fd => native.file_ioctl_async(fd, LOOP_CLR_FD, 0))
      // With other openers the kernel has only noted it.
      await onLoop(minor, async fd => {
        const info = await statusOf(fd)
        if (!deferred) await setAutoclear(fd, info, false)
      })
      return 'in use'
    } catch (err) {
      if (!GONE.includes(errnoOf(err))) throw err
    }
    // It stays when somebody has just opened it, which hurts nobody.
    await onControl(LOOP_CTL_REMOVE, minor).catch(() => {})
    return 'gone'
  }

  async ensure(minor: number): Promise<void> {
    try {
      await onLoop(minor, statusOf)
    } catch {
      await this.attach(minor)
    }
  }

  async keep(minor: number): Promise<void> {
    try {
      await onLoop(minor, async fd => setAutoclear(fd, await statusOf(fd), false))
    } catch (err) {
      throw Object.assign(err as Error, { code: 'EBUSY' })
    }
  }

  async update(minor: number, readOnly: boolean): Promise<void> {
    // The kernel asks a file for its size when the file is asked for, and not when the loop device
    // is.
    const file = await open(`${this.#folder}/dm-${minor}`, 'r')
    try {
      await file.stat()
      const flag = Buffer.alloc(4)
      flag.writeInt32LE(readOnly ? 1 : 0)
      await onLoop(minor, async fd => {
        await native.file_ioctl_async(fd, LOOP_SET_CAPACITY, 0)
        await native.file_ioctl_async(fd, BLKROSET, flag)
      })
    } finally {
      await file.close()
    }
  }

  async sync(minor: number): Promise<void> {
    const loop = await open(loopPath(minor), 'r')
    try {
      await loop.sync()
    } finally {
      await loop.close()
    }
  }
}

/** Device and inode of the file below a loop device. */
export async function backingFileOf(minor: number): Promise<{ dev: number; ino: number }> {
  return await onLoop(minor, async fd => {
    const { device, inode } = LOOP_INFO.read(viewOf(await statusOf(fd)), 0)
    return { dev: device, ino: inode }
  })
}

async function statusOf(fd: number): Promise<Buffer> {
  const info = Buffer.alloc(LOOP_INFO.size)
  await native.file_ioctl_async(fd, LOOP_GET_STATUS64, info)
  return info
}

async function setAutoclear(fd: number, info: Buffer, on: boolean): Promise<void> {
  const { flags } = LOOP_INFO.read(viewOf(info), 0)
  const wanted = on ? flags | LO_FLAGS_AUTOCLEAR : flags & ~LO_FLAGS_AUTOCLEAR
  LOOP_INFO.write(viewOf(info), 0, { flags: wanted })
  await native.file_ioctl_async(fd, LOOP_SET_STATUS64, info)
}

async function onControl(command: number, minor: number): Promise<void> {
  const control = await open('/dev/loop-control', 'r+')
  try {
    await native.file_ioctl_async(control.fd, command, minor)
  } finally {
    await control.close()
  }
}

async function onLoop<T>(minor: number, act: (fd: number) => Promise<T>): Promise<T> {
  const loop = await open(loopPath(minor), 'r+').catch(async err => {
    if (errnoOf(err) !== 'EACCES' && errnoOf(err) !== 'EROFS') throw err
    return await open(loopPath(minor), 'r')
  })
  try {
    return await act(loop.fd)
  } finally {
    await loop.close()
  }
}
