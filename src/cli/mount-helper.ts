/**
 * The helpers of mount(8) and umount(8), by which fstab(5), systemd's .mount units and
 * `mount -t thinfs` mount a pool. They are the program itself, under the names that those look for
 * in /sbin.
 *
 * Source: mount(8) and umount(8), "EXTERNAL HELPERS" and "EXIT STATUS".
 */
import { resolve } from 'node:path'
import { Command } from 'commander'
import { ThinfsError } from '../base/index.js'
import { mountOptionsOf } from '../daemon/index.js'
import { runTool } from '../host/index.js'
import { EXIT_USAGE } from './failure.js'
import { mountPool, splitOptions } from './mount.js'
import { umountPool } from './umount.js'

/**
 * The exit codes of mount(8) and umount(8) when they were called wrongly, interrupted, or failed.
 */
const STATUS = { usage: 1, interrupted: 8, failed: 32 } as const

/** The exit status of mount(8) for one of this program. */
export function helperStatus(status: number): number {
  if (status === 0) return 0
  if (status === EXIT_USAGE) return STATUS.usage
  return status > 128 ? STATUS.interrupted : STATUS.failed
}

interface HelperOptions {
  fake?: true
  sloppy?: true
  verbose?: true
  namespace?: string
  options: string[]
  lazy?: true
  force?: true
  readOnly?: true
}

/** @param name as it was called */
export const helperOf = (name: string): Command =>
  name.startsWith('umount') ? umountHelper(name) : mountHelper(name)

const mountHelper = (name: string): Command =>
  new Command(name)
    .description('The helper of mount(8): mount -t thinfs POOL MOUNTPOINT, and lines of fstab(5).')
    .argument('<POOL>', 'a pool.yaml, or the folder that has one')
    .argument('<MOUNTPOINT>', 'a folder')
    .option('-f, --fake', 'mount nothing, say whether the options and pool.yaml are right')
    .option('-n, --no-mtab', 'without effect: there is no mtab to write to')
    .option('-s, --sloppy', 'leave options out that are not known')
    .option('-v, --verbose', 'say what was done')
    .option('-N, --namespace <path>', 'refused: nsenter(1) goes there')
    .option('-t, --types <type>', 'without effect: the name says it')
    .option('-o, --options <list>', 'as thinfs mount has them', splitOptions, [])
    .action(async (pool: string, mountPoint: string, options: HelperOptions) => {
      mustStayHere(options, `mount -t thinfs ${pool} ${mountPoint}`)
      if (options.options.includes('remount')) {
        // The kernel alone acts on this: the pool stays as it was mounted.
        const list = options.options.join(',')
        if (!options.fake) await runTool('mount', '--internal-only', '-o', list, '--', mountPoint)
        return
      }
      const mountOptions = mountOptionsOf(options.options, { sloppy: options.sloppy ?? false })
      const settings = { options: mountOptions, logLevel: 'info' }
      await mountPool(pool, mountPoint, { ...settings, fake: options.fake ?? false })
      if (!options.verbose) return
      const done = options.fake ? 'could be mounted' : 'mounted'
      process.stdout.write(`${name}: ${pool} ${done} on ${resolve(mountPoint)}\n`)
    })

const umountHelper = (name: string): Command =>
  new Command(name)
    .description('The helper of umount(8): returns when all is committed.')
    .argument('<MOUNTPOINT>', 'of a pool')
    .option('-f, --force', 'as umount(8) does without a helper')
    .option('-l, --lazy', 'as umount(8) does without a helper')
    .option('-r, --read-only', 'as umount(8) does without a helper')
    .option('-n, --no-mtab', 'without effect: there is no mtab to write to')
    .option('-v, --verbose', 'say what was done')
    .option('-N, --namespace <path>', 'refused: nsenter(1) goes there')
    .option('-t, --types <type>', 'without effect: the name says it')
    .action(async (mountPoint: string, options: HelperOptions) => {
      mustStayHere(options, `umount ${mountPoint}`)
      const { force, lazy, readOnly } = options
      if (force || lazy || readOnly) {
        const flags = [force && '--force', lazy && '--lazy', readOnly && '--read-only']
        const given = flags.filter(flag => typeof flag === 'string')
        await runTool('umount', '--internal-only', ...given, '--', mountPoint)
      } else await umountPool(mountPoint, {})
      if (options.verbose) process.stdout.write(`${name}: ${mountPoint} unmounted\n`)
    })

/**
 * @throws NOT_SUPPORTED for another mount namespace, which the processes of a pool would not be in
 */
function mustStayHere({ namespace }: HelperOptions, command: string): void {
  if (namespace === undefined) return
  const how = `nsenter --mount=${namespace} ${command}`
  throw new ThinfsError('NOT_SUPPORTED', `a pool is mounted from within its namespace: ${how}`)
}
