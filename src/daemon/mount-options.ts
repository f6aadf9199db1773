/**
 * Options of `mount -o`: those of pools, those that the kernel acts on, and those that mount(8) and
 * fstab(5) pass to every file system as a matter of course.
 */
import { ThinfsError } from '../base/index.js'
import { TRANSPORT_OPTIONS } from '../control/index.js'
import { MOUNT_FLAGS } from '../fuse/index.js'

const OPTIONS: readonly string[] = [
  'allow_other',
  'ro',
  ...TRANSPORT_OPTIONS,
  ...Object.keys(MOUNT_FLAGS),
]

/** Options that take another one back, which came before. */
const OPPOSITES: Readonly<Record<string, string>> = {
  rw: 'ro',
  exec: 'noexec',
  async: 'sync',
  atime: 'noatime',
  diratime: 'nodiratime',
}

/**
 * Options without an effect here: volumes have no device nodes, no set-user-id bits and no times of
 * access of their own, and the others are for mount(8) and the init system alone.
 */
const MEANINGLESS: ReadonlySet<string> = new Set([
  ...['defaults', 'nodev', 'dev', 'nosuid', 'suid'],
  ...['relatime', 'norelatime', 'strictatime', 'nostrictatime', 'lazytime', 'nolazytime'],
  ...['auto', 'noauto', 'nofail', '_netdev', 'user', 'nouser', 'users', 'nousers'],
  ...['owner', 'noowner', 'group', 'nogroup'],
])
const isForOthers = (option: string): boolean => /^(?:x-|X-|comment=|user=)/.test(option)

/**
 * The options that mean something for a pool's mount; of those that contradict each other the last
 * one.
 * @param sloppy leaves out what is not known, as `mount -s` wants
 * @throws BAD_ARGUMENT naming the options that there are
 */
export function mountOptionsOf(
  given: readonly string[],
  { sloppy = false }: { sloppy?: boolean } = {},
): string[] {
  const kept = new Set<string>()
  for (const option of given) {
    if (Object.hasOwn(OPPOSITES, option)) kept.delete(OPPOSITES[option]!)
    else if (OPTIONS.includes(option)) {
      kept.delete(option)
      kept.add(option)
    } else if (!sloppy && !MEANINGLESS.has(option) && !isForOthers(option)) {
      const detail = `mount option ${option} is not one of ${OPTIONS.join(', ')}`
      throw new ThinfsError('BAD_ARGUMENT', `${detail}, nor one that fstab(5) has for all`)
    }
  }
  return [...kept]
}
