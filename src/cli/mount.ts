import { resolve } from 'node:path'
import { ThinfsError } from '../base/index.js'
import type { PoolPlace } from '../config/index.js'
import { connectDaemon, type Opening } from '../control/index.js'
import { mountOptionsOf, startDaemon } from '../daemon/index.js'
import type { TakeOver } from '../volumes/index.js'
import { adviceFor } from './advice.js'
import { command, DEFAULT_WAIT, type Output, print, seconds, WAIT_HELP } from './command.js'
import { configOf, tellingWhoIsStopped } from './pool.js'
import { Progress } from './progress.js'

type Options = Output & MountPoolOptions

export const mount = command(
  'mount',
  'Serve a pool: every volume becomes a file in the mount point.',
  'thinfs mount /srv/pool /mnt/thin -o allow_other',
)
  .argument('<POOL>', 'a pool.yaml, or the folder that has one')
  .argument('<MOUNTPOINT>', 'a folder')
  .option('-f, --foreground', 'stay until the pool is unmounted, and log to stderr')
  .option(
    '-o, --options <list>',
    'allow_other, ro, transport=dev, uring or fuse-native, noexec, noatime, sync; with commas between',
    splitOptions,
    [],
  )
  .option(
    '--accept-metadata',
    'serve the metadata as it is, though it may be an older copy: what it calls free is discarded',
  )
  .option(
    '--take-over',
    'take the pool from another host, which tenancy.fence.command of pool.yaml fences first',
  )
  .option(
    '--old-host-is-off',
    'with --take-over: that host is off, or cut off from the storage, which you have seen; nothing fences it',
  )
  .option('--wait <seconds>', WAIT_HELP, seconds, DEFAULT_WAIT)
  .option('--log-level <level>', 'trace, debug, info, warn, error, fatal or silent', 'info')
  .option('--log-file <path>', "default: thinfs.log in the pool's folder")
  .action(async (pool: string, mountPoint: string, options: Options) => {
    const pid = await mountPool(pool, mountPoint, options)
    print(options, { pid, mountPoint: resolve(mountPoint) }, '')
  })

/** Options of a mount, from the command line of `thinfs mount` or from mount(8). */
export interface MountPoolOptions {
  foreground?: true
  options: string[]
  acceptMetadata?: true
  takeOver?: true
  oldHostIsOff?: true
  /** Seconds to wait for a command that has the pool. */
  wait?: number
  logLevel: string
  logFile?: string
  /** Check the options and pool.yaml, and mount nothing. */
  fake?: boolean
}

/**
 * Mounts a pool, and says on stderr what is odd about it. In the foreground it returns when the
 * pool was unmounted.
 * @returns the process id of the daemon; 0 for one that was not to be started
 */
export async function mountPool(
  pool: string,
  mountPoint: string,
  options: MountPoolOptions,
): Promise<number> {
  const mountOptions = mountOptionsOf(options.options)
  const config = await configOf(pool)
  if (options.fake) return 0
  const starting = {
    mountPoint,
    mountOptions,
    foreground: options.foreground ?? false,
    acceptMetadata: options.acceptMetadata ?? false,
    ...takeOverOf(options),
    wait: options.wait ?? DEFAULT_WAIT,
    logLevel: options.logLevel,
    ...(options.logFile !== undefined && { logFile: options.logFile }),
  }
  const progress = new Map<string, Progress>()
  const show = ({ what, done, all }: Opening): void => {
    if (!progress.has(what)) progress.set(what, new Progress(what, 1))
    progress.get(what)!.show(done / all)
  }
  const { pid } = await tellingWhoIsStopped(config, () =>
    startDaemon(config, starting, show).finally(() => {
      for (const line of progress.values()) line.end()
    }),
  )
  // In the foreground the pool was unmounted by now, and the log on stderr has said it.
  if (!options.foreground) await warnOfMode(config, mountOptions.includes('ro'))
  return pid
}

/** @throws BAD_ARGUMENT */
function takeOverOf({ takeOver, oldHostIsOff }: MountPoolOptions): { takeOver?: TakeOver } {
  if (takeOver) return { takeOver: oldHostIsOff ? 'off' : 'fence' }
  if (!oldHostIsOff) return {}
  throw new ThinfsError('BAD_ARGUMENT', '--old-host-is-off is for --take-over, which is missing')
}

/** Says so when the pool came up in another mode than the one asked for, and what else to know. */
async function warnOfMode(pool: PoolPlace, readOnly: boolean): Promise<void> {
  const daemon = await connectDaemon(pool)
  if (daemon === null) return
  try {
    const status = await daemon.status()
    const { mode, reason, warnings } = status
    for (const warning of warnings) process.stderr.write(`thinfs: ${warning}\n`)
    if (mode === 'write' || (readOnly && mode === 'read_only')) return
    const advice = adviceFor(status)
    const toDo = advice === null ? '' : `. To do: ${advice}`
    process.stderr.write(`thinfs: mounted, but in mode ${mode}: ${reason}${toDo}\n`)
  } finally {
    daemon.close()
  }
}

/** The options of several `-o`, each with commas between. */
export function splitOptions(list: string, before: string[]): string[] {
  return [...before, ...list.split(',').filter(option => option !== '')]
}
