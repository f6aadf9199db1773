/** Whether a pool can be mounted by the user who asks, and for whom. */
import { execFile } from 'node:child_process'
import {
  closeSync,
  constants,
  existsSync,
  mkdtempSync,
  openSync,
  rmdirSync,
  statSync,
} from 'node:fs'
import { homedir, tmpdir, userInfo } from 'node:os'
import { join } from 'node:path'
import { errnoOf } from '../base/index.js'
import { DEV } from '../fuse/index.js'
import { isInUserNamespace, unmountLazily } from '../host/index.js'
import {
  asRoot,
  type Finding,
  fail,
  isContainer,
  isRoot,
  ok,
  readText,
  reasonOf,
  warn,
  writeAsRoot,
} from './finding.js'
import { find, install } from './programs.js'

const DEVICE = '/dev/fuse'
/** Starts a shell in which an ordinary user may mount without fusermount3. */
const NAMESPACE = 'unshare -Urm'

/** Opens the device, as every mount does. */
export function lookAtDevice(): Finding {
  try {
    closeSync(openSync(DEVICE, constants.O_RDWR))
    return ok(DEVICE, 'can be opened')
  } catch (err) {
    const { found, mend } = whyNoDevice(errnoOf(err))
    return fail(DEVICE, found ?? reasonOf(err), mend)
  }
}

function whyNoDevice(errno: string): { found: string | null; mend: string | null } {
  const load = asRoot('modprobe fuse')
  switch (errno) {
    case 'ENOENT': {
      const isLoaded = /\bfuse$/m.test(readText('/proc/filesystems') ?? '')
      const found = isLoaded
        ? 'there is none; a container gets it with --device /dev/fuse'
        : 'there is none: the kernel has no FUSE, or its module is not loaded'
      const make = isContainer() ? null : asRoot(`mknod -m 666 ${DEVICE} c 10 229`)
      return { found, mend: isLoaded ? make : load }
    }
    case 'ENODEV':
    case 'ENXIO':
      return { found: 'leads nowhere: the module fuse is not loaded', mend: load }
    case 'EACCES': {
      const { mode, uid } = statSync(DEVICE)
      const found = `mode ${(mode & 0o777).toString(8)} of user ${uid} keeps this user out`
      return { found, mend: asRoot(`chmod 666 ${DEVICE}`) }
    }
    case 'EPERM':
      return {
        found: 'this container may not open it: start it with --device /dev/fuse',
        mend: null,
      }
    default:
      return { found: null, mend: null }
  }
}

/**
 * Mounts an empty file system on a temporary folder, for a moment. Rights, security modules and
 * mount options all have their say, so nothing less can tell.
 * @param hasNamespaces whether users can make namespaces to mount in
 */
export async function tryMount(hasNamespaces: boolean): Promise<Finding> {
  const check = 'mount'
  if (!isRoot() && !existsSync('/etc/mtab')) {
    const why = 'by fusermount3: it unmounts nothing where /etc/mtab is missing'
    return fail(check, why, asRoot('ln -s /proc/self/mounts /etc/mtab'))
  }
  const folder = mkdtempSync(join(tmpdir(), 'thinfs-doctor-'))
  try {
    const name = 'thinfs-doctor'
    const options = { source: name, subtype: name, allowOther: false, readOnly: true }
    closeSync(await DEV.mount(folder, options))
    await unmountLazily(folder)
    return ok(check, wayToMount())
  } catch (err) {
    const reason = reasonOf(err)
      .replace(`${folder}: `, '')
      .replace(/; thinfs doctor .*/, '')
    const right = mayNobodyMount()
      ? '; a container is given the right with --cap-add SYS_ADMIN'
      : reason.endsWith(NO_NAME)
        ? ', which is a line of /etc/passwd'
        : ''
    const ways = [howToMount(), ...(hasNamespaces ? [NAMESPACE] : [])].filter(way => way !== null)
    const mend = lookAtDevice().state === 'ok' && ways.length > 0 ? ways.join('; or ') : null
    return fail(check, `${wayToMount()}: ${reason}${right}`, mend)
  } finally {
    rmdirSync(folder)
  }
}

function wayToMount(): string {
  if (!isRoot()) return 'by fusermount3'
  return isInUserNamespace() ? 'mount(2), as root of a user namespace' : 'mount(2), as root'
}

/** The number of CAP_SYS_ADMIN. Source: include/uapi/linux/capability.h. */
const CAP_SYS_ADMIN = 21n

/** Whether not even root, or what is set-user-id root, has the right to mount. capabilities(7). */
function mayNobodyMount(): boolean {
  const [, most] = /^CapBnd:\s*(\w+)$/m.exec(readText('/proc/self/status') ?? '') ?? []
  return most !== undefined && ((BigInt(`0x${most}`) >> CAP_SYS_ADMIN) & 1n) === 0n
}

/** The command that lets fusermount3 mount for this user; null where none does, or for root. */
function howToMount(): string | null {
  if (isRoot() || mayNobodyMount()) return null
  const path = find('fusermount3')
  if (path === null) return install({ apt: 'fuse3' })
  if (!hasName()) {
    const line = `thinfs:x:${process.getuid!()}:${process.getgid!()}::${homedir()}:/bin/sh`
    return writeAsRoot(line, '/etc/passwd', { append: true })
  }
  // A process with no_new_privs gets no rights from a set-user-id program.
  if (/^NoNewPrivs:\s*1$/m.test(readText('/proc/self/status') ?? '')) return null
  const { mode, uid } = statSync(path)
  return (mode & 0o4000) !== 0 && uid === 0 ? null : asRoot(`chmod u+s ${path}`)
}

/** The message of fusermount3 to a user without a name. */
const NO_NAME = 'could not determine username'

/** Whether this user has a name, as fusermount3 wants one. */
function hasName(): boolean {
  try {
    userInfo()
    return true
  } catch {
    return false
  }
}

const CONFIG = '/etc/fuse.conf'

/** Whether `mount -o allow_other` is taken. */
export function lookAtAllowOther(): Finding {
  const check = 'allow_other'
  if (isRoot()) return ok(check, 'root may')
  if (/^\s*user_allow_other\s*$/m.test(readText(CONFIG) ?? '')) {
    return ok(check, `user_allow_other is set in ${CONFIG}`)
  }
  const found = `user_allow_other is not set in ${CONFIG}: a mount is for its owner alone`
  return warn(check, found, writeAsRoot('user_allow_other', CONFIG, { append: true }))
}

/** Settings that keep users from making namespaces, and the values that let them. */
const SETTINGS = [
  ['user.max_user_namespaces', '0', '15000'],
  ['kernel.unprivileged_userns_clone', '0', '1'],
  ['kernel.apparmor_restrict_unprivileged_userns', '1', '0'],
] as const

/** Makes a namespace as a user would, to mount in where fusermount3 is missing. */
export async function tryNamespace(): Promise<Finding> {
  const check = 'user namespace'
  const error = await new Promise<string | null>(resolve => {
    execFile('unshare', ['-Urm', 'true'], (err, _, stderr) =>
      resolve(err === null ? null : stderr.trim() || err.message),
    )
  })
  if (error === null) return ok(check, `${NAMESPACE} works`)
  const setting = SETTINGS.find(
    ([name, off]) => readText(`/proc/sys/${name.replaceAll('.', '/')}`)?.trim() === off,
  )
  if (setting === undefined) {
    const isFiltered = /^Seccomp:\s*2$/m.test(readText('/proc/self/status') ?? '')
    const allowed = '; a container may make them with --security-opt seccomp=unconfined'
    return warn(check, `${error}${isFiltered ? allowed : ''}`)
  }
  const [name, off, on] = setting
  return warn(check, `forbidden by sysctl ${name}, which is ${off}`, asRoot(`sysctl ${name}=${on}`))
}
