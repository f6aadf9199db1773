import { resolve } from 'node:path'
import { command, type Output, print } from './command.js'
import { configOf } from './pool.js'

interface Options extends Output {
  foreground?: true
  options: string[]
  acceptMetadata?: true
  logLevel: string
  logFile?: string
}

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
    'allow_other, ro, transport=dev or uring; with commas between',
    split,
    [],
  )
  .option(
    '--accept-metadata',
    'serve the metadata as it is, though it may be an older copy: what it calls free is discarded',
  )
  .option('--log-level <level>', 'trace, debug, info, warn, error, fatal or silent', 'info')
  .option('--log-file <path>', "default: thinfs.log in the pool's folder")
  .action(async (pool: string, mountPoint: string, options: Options) => {
    const { startDaemon } = await import('../daemon/index.js')
    const { pid } = await startDaemon(await configOf(pool), {
      mountPoint,
      mountOptions: options.options,
      foreground: options.foreground ?? false,
      acceptMetadata: options.acceptMetadata ?? false,
      logLevel: options.logLevel,
      ...(options.logFile !== undefined && { logFile: options.logFile }),
    })
    print(options, { pid, mountPoint: resolve(mountPoint) }, '')
  })

function split(list: string, before: string[]): string[] {
  return [...before, ...list.split(',').filter(option => option !== '')]
}
