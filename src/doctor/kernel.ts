/** Permissions of this user beside mounting. */
import { release } from 'node:os'
import { errnoOf, isLinuxSince } from '../base/index.js'
import { RESENDS_SINCE } from '../fuse/index.js'
import { errnoOfLoops, isInUserNamespace } from '../host/index.js'
import { native } from '../native.js'
import { Ring } from '../ring/index.js'
import {
  asRoot,
  type Finding,
  isContainer,
  isRoot,
  ok,
  readText,
  reasonOf,
  warn,
  writeAsRoot,
} from './finding.js'

/** The first kernel whose FUSE passes FALLOC_FL_ZERO_RANGE on. Source: fs/fuse/file.c. */
const ZERO_RANGE_SINCE = [5, 14] as const
/** The first kernel that does not count a ring as locked memory. Source: fs/io_uring.c. */
const RINGS_UNLOCKED_SINCE = [5, 12] as const
/** Bytes of locked memory that are plenty for the engine's rings. */
const LOCKED_ENOUGH = 8 << 20

export function lookAtVersion(): Finding {
  const found = `Linux ${release()}, Node.js ${process.version}`
  const [major, minor] = ZERO_RANGE_SINCE
  return isLinuxSince(ZERO_RANGE_SINCE)
    ? ok('system', found)
    : warn('system', `${found}: before Linux ${major}.${minor} zeros are written one by one`)
}

/**
 * Requests that an engine has read when it dies: the next one answers them if the kernel resends.
 */
export function lookAtResend(): Finding {
  const check = 'death of an engine'
  if (isLinuxSince(RESENDS_SINCE)) return ok(check, 'the next one answers what it had read')
  const [major, minor] = RESENDS_SINCE
  const found = `before Linux ${major}.${minor} what it had read fails (ECONNABORTED)`
  return warn(check, found, 'a newer kernel')
}

/** Loop devices, which attach makes. */
export function lookAtLoop(): Finding {
  const check = 'loop devices'
  const errno = errnoOfLoops()
  if (errno === null) return ok(check, 'can be made')
  const without = 'fuse2fs -o fakeroot VOLUME FOLDER'
  switch (errno) {
    case 'ENOENT': {
      const found = 'no /dev/loop-control: the module loop is not loaded, or not for this container'
      return warn(check, found, isRoot() && !isContainer() ? asRoot('modprobe loop') : without)
    }
    case 'EACCES': {
      const found = 'attach needs root; fuse2fs, qemu-nbd and guestmount take the file of a volume'
      return warn(check, found, without)
    }
    default:
      return warn(check, `/dev/loop-control cannot be opened (${errno}): no attach`, without)
  }
}

/** Makes a ring, as the engine does for reads that wait for a disk. */
export function tryRing(): Finding {
  const check = 'io_uring'
  try {
    new Ring({ entries: 8 }).close()
    return ok(check, 'works')
  } catch (err) {
    const found = `${reasonOf(err).replace('io_uring: ', '')}; threads read from slow disks instead`
    const disabled = readText('/proc/sys/kernel/io_uring_disabled')?.trim() ?? '0'
    return warn(check, found, disabled === '0' ? null : asRoot('sysctl kernel.io_uring_disabled=0'))
  }
}

const ENABLE_URING = '/sys/module/fuse/parameters/enable_uring'

/** FUSE over io_uring, for `transport: uring`. */
export function lookAtUring(): Finding {
  const check = 'fuse.enable_uring'
  const value = readText(ENABLE_URING)?.trim()
  if (value === 'Y') return ok(check, 'on')
  if (value === undefined) return warn(check, 'not in this kernel: no transport uring')
  return warn(check, 'off: no transport uring', writeAsRoot('Y', ENABLE_URING))
}

/** Marks this process, which is about to end, as the daemon marks itself. */
export function tryIoFlusher(): Finding {
  const check = 'IO_FLUSHER'
  try {
    native.process_set_io_flusher()
    return ok(check, 'works')
  } catch (err) {
    const risk = 'a loop device on a volume may hang when memory is short'
    const found = errnoOf(err) === 'EPERM' ? 'needs CAP_SYS_RESOURCE' : reasonOf(err)
    // Without root there is no loop device either.
    if (!isRoot() || isInUserNamespace()) return ok(check, `${found}; only loop devices need it`)
    return warn(check, `${found}, such as --cap-add SYS_RESOURCE: without, ${risk}`)
  }
}

/** The limit on locked memory. */
export function lookAtLockedMemory(): Finding {
  const check = 'locked memory'
  const limits = readText('/proc/self/limits') ?? ''
  const [, soft = 'unlimited'] = /^Max locked memory\s+(\S+)/m.exec(limits) ?? []
  const found = soft === 'unlimited' ? soft : `${Number(soft) >> 10} KiB`
  if (isLinuxSince(RINGS_UNLOCKED_SINCE)) return ok(check, `${found}; nothing of thinfs counts`)
  if (soft === 'unlimited' || Number(soft) >= LOCKED_ENOUGH) return ok(check, found)
  return warn(check, `${found}: too little for io_uring before Linux 5.12`, 'ulimit -l 8192')
}
