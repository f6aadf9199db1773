/**
 * Mounting: a descriptor of /dev/fuse joined to a folder.
 *
 * Root calls mount(2). Everybody else asks fusermount3, which is set-user-id root and sends the
 * descriptor over a socket. Source: Documentation/filesystems/fuse.rst, "Mount options"; libfuse's
 * util/fusermount.c, _FUSE_COMMFD.
 */
import { spawn } from 'node:child_process'
import { closeSync, constants, openSync } from 'node:fs'
import { errnoOf, ThinfsError } from '../base/index.js'
import { native } from '../native.js'

const MS_RDONLY = 1
const MS_NOSUID = 2
const MS_NODEV = 4
/** Options of mount(8) that the kernel acts on, and their flags. Source: linux/mount.h. */
export const MOUNT_FLAGS = {
  noexec: 8,
  sync: 16,
  dirsync: 128,
  noatime: 1024,
  nodiratime: 2048,
} as const
type MountFlag = keyof typeof MOUNT_FLAGS

/** Those of the options that are flags. */
export const flagsAmong = (options: readonly string[]): MountFlag[] =>
  options.filter(option => Object.hasOwn(MOUNT_FLAGS, option)) as MountFlag[]

/** The descriptor at which fusermount3 finds its end of the socket. */
const FUSERMOUNT_SOCKET = 3

export interface MountOptions {
  /** Shown as the mount's source. */
  source: string
  /** The mount's type is `fuse.` and this. */
  subtype: string
  /** Whether users other than the owner of the mount may use it, as far as permissions let them. */
  allowOther: boolean
  readOnly: boolean
  /** More options for the kernel; default: none. */
  flags?: readonly MountFlag[]
  /** Device nodes in it can be opened; for root alone. Default: false. */
  devices?: boolean
}

/**
 * Mounts on the folder `mountPoint`; permissions are checked by the kernel.
 * @returns a descriptor of /dev/fuse, non-blocking, closed on exec
 * @throws MOUNT_FAILED with the errno of what failed
 */
export async function mountFuse(mountPoint: string, options: MountOptions): Promise<number> {
  return process.getuid?.() === 0
    ? mountDirectly(mountPoint, options)
    : await mountByFusermount(mountPoint, options)
}

function mountDirectly(mountPoint: string, options: MountOptions): number {
  let fd: number
  try {
    fd = openSync('/dev/fuse', constants.O_RDWR | constants.O_NONBLOCK)
  } catch (err) {
    throw failed(mountPoint, err, `/dev/fuse cannot be opened (${errnoOf(err)})${ADVICE}`)
  }
  const data = [
    `fd=${fd}`,
    'rootmode=40000',
    `user_id=${process.getuid?.()}`,
    `group_id=${process.getgid?.()}`,
    'default_permissions',
  ]
  if (options.allowOther) data.push('allow_other')
  let flags = MS_NOSUID | (options.devices ? 0 : MS_NODEV) | (options.readOnly ? MS_RDONLY : 0)
  for (const flag of options.flags ?? []) flags |= MOUNT_FLAGS[flag]
  try {
    native.mount_attach(
      options.source,
      mountPoint,
      `fuse.${options.subtype}`,
      flags,
      data.join(','),
    )
  } catch (err) {
    closeSync(fd)
    const isForbidden = errnoOf(err) === 'EPERM'
    throw failed(mountPoint, err, isForbidden ? `this root may not mount${ADVICE}` : undefined)
  }
  return fd
}

async function mountByFusermount(mountPoint: string, options: MountOptions): Promise<number> {
  const given = [
    `fsname=${options.source.replace(/[\\,]/g, '\\$&')}`,
    `subtype=${options.subtype}`,
    'default_permissions',
  ]
  if (options.allowOther) given.push('allow_other')
  if (options.readOnly) given.push('ro')
  given.push(...(options.flags ?? []))
  const [ours, theirs] = native.socket_pair()
  let stderr = ''
  try {
    await new Promise<void>((resolve, reject) => {
      const child = spawn('fusermount3', ['-o', given.join(','), '--', mountPoint], {
        env: { ...process.env, _FUSE_COMMFD: String(FUSERMOUNT_SOCKET) },
        stdio: ['ignore', 'ignore', 'pipe', theirs],
      })
      child.stderr?.on('data', text => {
        stderr += text
      })
      child.on('error', reject)
      child.on('close', () => resolve())
    })
  } catch (err) {
    closeSync(ours)
    throw failed(mountPoint, err, `fusermount3 cannot be run (${errnoOf(err)})${ADVICE}`)
  } finally {
    closeSync(theirs)
  }
  // It has exited: what it sent is here, or will never come.
  const fd = native.socket_receive_descriptor(ours)
  closeSync(ours)
  if (fd < 0) {
    const said = stderr.trim() || 'fusermount3 sent no descriptor'
    const isOfFolder = said.includes(mountPoint)
    throw failed(mountPoint, new Error(isOfFolder ? said : `${said}${ADVICE}`))
  }
  return fd
}

/** Errors that come of the machine, not of the folder. */
const ADVICE = '; thinfs doctor says how to mend it'

function failed(mountPoint: string, cause: unknown, what = (cause as Error).message): ThinfsError {
  return new ThinfsError('MOUNT_FAILED', `${mountPoint}: ${what}`, {
    cause,
    errno: errnoOf(cause),
  })
}
