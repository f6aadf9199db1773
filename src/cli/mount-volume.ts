import { ThinfsError } from '../base/index.js'
import {
  attachLoop,
  detachLoop,
  forgetLoopNames,
  listLoops,
  loopsOnFile,
  mountsOn,
  runTool,
} from '../host/index.js'
import { command, type Output, POOL_HELP, print } from './command.js'
import { splitOptions } from './mount.js'
import { volumeFile, withPool } from './pool.js'

interface Options extends Output {
  options: string[]
}

export const mountVolume = command(
  'mount-volume',
  'Mount the filesystem on a volume: attaches it, lets fsck(8) mend it where that is needed, mounts.',
  'thinfs mount-volume /srv/pool web /srv/web -o discard',
)
  .argument('<POOL>', POOL_HELP)
  .argument('<NAME>', 'of the volume')
  .argument('<FOLDER>', 'to mount it on')
  .option('-o, --options <list>', 'of mount(8); ro also attaches it read-only', splitOptions, [])
  .action(async (pool: string, name: string, folder: string, options: Options) => {
    const readOnly = options.options.includes('ro')
    const file = await withPool(pool, 'read', (admin, place) => volumeFile(admin, place.file, name))
    const isNew = loopsOnFile(await listLoops(), file).length === 0
    const device = await attachLoop(file.path, { readOnly })
    try {
      if (isNew) forgetLoopNames(device)
      const type = await typeOf(name, device)
      // What is mounted is being changed, and fsck would spoil it.
      const isMounted = mountsOn(device, await listLoops()).length > 0
      if (!readOnly && !isMounted) await mend(name, device, type)
      const list = options.options.length === 0 ? [] : ['-o', options.options.join(',')]
      await runTool('mount', '-t', type, ...list, '--', device, folder)
      print(options, { device, type, folder }, '')
    } catch (err) {
      if (isNew) await detachLoop(device).catch(() => {})
      throw err
    }
  })

/** @throws BAD_ARGUMENT when it has no filesystem, saying what it has */
async function typeOf(name: string, device: string): Promise<string> {
  const probe = ['--probe', '--output', 'export', device]
  // Its status for nothing found is that of a failure.
  const found = await runTool('blkid', ...probe).catch(() => '')
  const value = (key: string) => new RegExp(`^${key}=(.*)$`, 'm').exec(found)?.[1]
  const type = value('TYPE')
  if (type !== undefined && value('USAGE') === 'filesystem') return type
  const partitions = value('PTTYPE')
  const what =
    partitions !== undefined
      ? `it has partitions (${partitions}); thinfs attach --partscan makes devices of them`
      : type !== undefined
        ? `it has no filesystem, but ${type}`
        : `it has no filesystem; mkfs.ext4 $(thinfs attach POOL ${name}) makes one`
  throw new ThinfsError('BAD_ARGUMENT', `${name}: ${what}`, { errno: 'ENODATA' })
}

/**
 * Bits of fsck's status by which the filesystem is in order now. Source: fsck(8), "EXIT STATUS".
 */
const MENDED = 1 | 2

/** @throws TOOL_FAILED when a person has to decide */
async function mend(name: string, device: string, type: string): Promise<void> {
  try {
    await runTool('fsck', '-T', '-t', type, '-a', device)
  } catch (err) {
    const { code, stdout } = (err as ThinfsError).cause as { code?: unknown; stdout?: string }
    if (typeof code === 'number' && (code & ~MENDED) === 0) {
      process.stderr.write(`thinfs: ${name}: fsck has mended it\n`)
      return
    }
    // Filesystems that check themselves when they are mounted have no such program.
    if (/fsck\.\S+.*not found|No such file/i.test(`${(err as Error).message}${stdout}`)) return
    const how = `fsck ${device} asks what to do`
    throw new ThinfsError('TOOL_FAILED', `${name}: ${(err as Error).message}; ${how}`, {
      cause: err,
    })
  }
}
