import { closeSync, existsSync, linkSync, openSync, read, renameSync, rmSync } from 'node:fs'
import { extname, join } from 'node:path'
import { promisify } from 'node:util'
import { errnoOf, ioError, MIB, ThinfsError } from '../base/index.js'
import { copyIn } from '../host/index.js'
import { command, type Output, POOL_HELP, print } from './command.js'
import { mustNotBeTerminal, writeOut } from './output.js'
import { mountOfPool, placeOfPool, withDaemonOf } from './pool.js'
import { Progress } from './progress.js'
import { flushMaps } from './snapshot.js'

interface Options extends Output {
  format?: string
}

export const exportImage = command(
  'export',
  'Make a disk image of a volume: raw, qcow2, or another that qemu-img writes. Holes stay holes.',
  'thinfs export /srv/pool web@monday web.qcow2',
)
  .argument('<POOL>', `${POOL_HELP}; it has to be mounted`)
  .argument('<NAME>', 'of the volume; of one that is in use, what it holds at this moment')
  .argument('<FILE>', 'to be made; -: standard output, raw, with zeros for holes')
  .option('--format <format>', 'one of qemu-img: raw, qcow2, vmdk … (default: by the ending)')
  .action(async (pool: string, name: string, file: string, options: Options) => {
    const format = options.format ?? formatFor(file)
    const isStream = file === STREAM
    if (isStream) mustBeStreamable(format)
    const place = placeOfPool(pool)
    await withDaemonOf(place, async admin => {
      const { mountPoint } = await mountOfPool(admin, place.file)
      await flushMaps(admin, place, name)
      const [held] = (await admin.hold({ names: [name] })).volumes
      // The snapshot ends with its last descriptor.
      const fd = openSync(join(mountPoint, held!.file ?? held!.name), 'r')
      try {
        if (isStream) await pour(fd, name, held!.size)
        else await whileNew(file, part => copyIn(fd, part, format))
      } finally {
        closeSync(fd)
      }
    })
    const result = { name, file, format }
    if (!isStream) print(options, result, '')
    else if (options.json) process.stderr.write(`${JSON.stringify(result, null, 2)}\n`)
  })

/** A FILE that is standard output, or input. */
export const STREAM = '-'

/** @throws BAD_ARGUMENT for a format whose writer goes back, and for a terminal */
function mustBeStreamable(format: string): void {
  if (format !== 'raw') {
    const why = 'it is not written from its beginning to its end; give a FILE'
    throw new ThinfsError('BAD_ARGUMENT', `--format ${format}: standard output takes raw: ${why}`)
  }
  mustNotBeTerminal('a disk')
}

const readLater = promisify(read)

/** Writes the whole of a volume to standard output. */
async function pour(fd: number, name: string, size: number): Promise<void> {
  const buffer = Buffer.allocUnsafe(MIB)
  const progress = new Progress(`exporting ${name}`, size)
  try {
    for (let offset = 0; offset < size; ) {
      const length = Math.min(buffer.length, size - offset)
      const { bytesRead } = await readLater(fd, buffer, 0, length, offset)
      if (bytesRead === 0) throw new ThinfsError('IO_ERROR', `${name}: it ends at byte ${offset}`)
      await writeOut(buffer.subarray(0, bytesRead))
      offset += bytesRead
      progress.show(offset, offset)
    }
  } finally {
    progress.end()
  }
}

/** By the endings of their files; those of raw images are many. */
export const FORMATS = ['qcow2', 'vmdk', 'vdi', 'vhdx', 'qed']

function formatFor(file: string): string {
  const ending = extname(file).slice(1).toLowerCase()
  return FORMATS.includes(ending) ? ending : 'raw'
}

/**
 * Makes a file under another name, and gives it its own when it is whole.
 * @throws BAD_ARGUMENT when a file of one of these names is there; what `make` throws: nothing is
 *   left then
 */
async function whileNew(file: string, make: (part: string) => Promise<void>): Promise<void> {
  const part = `${file}.part`
  if (existsSync(file)) throw isThere(file)
  try {
    // Exclusively: what somebody else has there, a link for instance, is not written to.
    closeSync(openSync(part, 'wx'))
  } catch (err) {
    if (errnoOf(err) !== 'EEXIST') throw ioError(part, err)
    throw isThere(part, '; an export makes it, or one that was killed has left it')
  }
  try {
    await make(part)
    giveName(part, file)
  } finally {
    rmSync(part, { force: true })
  }
}

/** As rename(2), but for a file that somebody else has made meanwhile. @throws BAD_ARGUMENT */
function giveName(part: string, file: string): void {
  try {
    linkSync(part, file)
  } catch (err) {
    if (existsSync(file)) throw isThere(file)
    if (!['EPERM', 'EOPNOTSUPP', 'ENOSYS', 'EMLINK'].includes(errnoOf(err)))
      throw ioError(file, err)
    // A filesystem without links, as FAT.
    renameSync(part, file)
  }
}

const isThere = (file: string, why = ''): ThinfsError =>
  new ThinfsError('BAD_ARGUMENT', `${file} is there already${why}`, { errno: 'EEXIST' })
