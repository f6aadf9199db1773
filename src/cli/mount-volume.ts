import { ThinfsError } from '../base/index.js'
import {
  attachLoop,
  detachLoop,
  listLoops,
  mountsOn,
  nameOf,
  runTool,
  writersOf,
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
    if (!readOnly) mustNotBeWritten(name, file.path)
    const { device, isNew } = await attachLoop(file.path, { readOnly })
    try {
      const type = await typeOf(name, device)
      // A mounted filesystem is being changed, and fsck would spoil it.
      const isMounted = mountsOn(device, await listLoops()).length > 0
      if (!readOnly && !isMounted) {
        mustNotBeWritten(name, device)
        await mend(name, device, type)
      }
      const list = options.options.length === 0 ? [] : ['-o', options.options.join(',')]
      await runTool('mount', '-t', type, ...list, '--', device, folder)
      print(options, { device, type, folder }, '')
    } catch (err) {
      if (isNew) await detachLoop(device).catch(() => {})
      throw err
    }
  })

/**
 * A virtual machine, for instance: fsck and the kernel would work against it.
 * @throws VOLUME_BUSY
 */
function mustNotBeWritten(name: string, path: string): void {
  const writers = writersOf(path)
  if (writers.length === 0) return
  const who = writers.map(nameOf).join(', ')
  throw new ThinfsError('VOLUME_BUSY', `${name}: ${who} has it open to write to it`)
}

/** Exit statuses of blkid. Source: blkid(8), "RETURN CODE". */
const BLKID = { nothing: 2, several: 8 } as const

/** @throws BAD_ARGUMENT when it has no filesystem, saying what it has; TOOL_FAILED */
async function typeOf(name: string, device: string): Promise<string> {
  const probe = ['--probe', '--output', 'export', device]
  const found = await runTool('blkid', ...probe).catch((err: ThinfsError) => {
    const { code } = err.cause as { code?: unknown }
    if (code === BLKID.nothing) return ''
    if (code !== BLKID.several) throw err
    const how = 'wipefs, with the path of the volume, lists them, and takes away what is not so'
    throw new ThinfsError('BAD_ARGUMENT', `${name}: it has signs of several filesystems; ${how}`, {
      errno: 'ENODATA',
    })
  })
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
/** The same when it could not check at all: its program is not there, for instance. */
const NOT_CHECKED = 8

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
    const said = `${(err as Error).message}${stdout}`
    if (code === NOT_CHECKED && /fsck\.\S+.*not found|No such file/i.test(said)) return
    const how = `fsck ${device} asks what to do`
    throw new ThinfsError('TOOL_FAILED', `${name}: ${(err as Error).message}; ${how}`, {
      cause: err,
    })
  }
}
