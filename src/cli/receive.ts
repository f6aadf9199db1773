import { join } from 'node:path'
import { ThinfsError } from '../base/index.js'
import { formatSize, type PoolConfig, type PoolPlace } from '../config/index.js'
import type { FileTarget, ReceiveTarget, StreamHeader, StreamReader } from '../streams/index.js'
import type { NewVolume, PoolAdmin, PoolFiles } from '../volumes/index.js'
import { type Output, poolCommand, print } from './command.js'
import { mustBeWanted, YES_OPTION } from './confirm.js'
import { mountOfPool, withDaemonOr, withPool } from './pool.js'
import { Progress } from './progress.js'

interface Options extends Output {
  resume?: true
  token?: true
  abort?: true
  yes?: true
}

export const receive = poolCommand(
  'receive',
  'Make a volume of what thinfs send wrote, from standard input.',
  'thinfs receive /srv/pool web@monday < web@monday.stream',
)
  .argument('<NAME>', 'of the new volume')
  .option('--resume', 'keep what came where the stream is cut short: it can go on there')
  .option('--token', 'print what thinfs send --resume needs to go on; receives nothing')
  .option('--abort', 'give what is kept up; receives nothing; asks')
  .option(...YES_OPTION)
  .addHelpText(
    'after',
    `
What differs from an older snapshot goes into a new snapshot of the volume here that has the content
of that one: it is found whatever its name is, and must not have been written to since it was
received (NO_BASE). Block sizes may differ. The volume has its name when all of the stream was found
whole; of a stream that is cut short or damaged (BAD_STREAM) nothing stays, but with --resume: what
came up to the last checkpoint, one each 32M, is kept without a name, over a restart too, until
  $ thinfs send POOL SNAPSHOT --resume $(thinfs receive POOL NAME --token) | thinfs receive POOL NAME
goes on, or --abort gives its space back. thinfs status tells of it.`,
  )
  .action(async (pool: string, name: string, options: Options) => {
    const { resume, token, abort, yes, ...output } = options
    if (abort) {
      const question = async (): Promise<string> => `Give up what is kept of the stream of ${name}?`
      await mustBeWanted('giving up what is kept of a stream', { yes, question })
      await withPool(pool, 'write', admin => admin.dropPartial({ name }))
      return print(output, { aborted: name }, '')
    }
    if (token) return await printToken(pool, name, output)
    const keeps = resume === true
    const received = await withDaemonOr(
      pool,
      'write',
      (admin, place) => intoMount(admin, place, name, keeps),
      (config, files) => intoFiles(config, files, name, keeps),
    )
    const { size, base, bytes } = received
    const from = base === null ? '' : `, on ${base}`
    print(output, received, `${name}: ${formatSize(size)}${from}, ${formatSize(bytes)} received`)
  })

interface Received {
  name: string
  size: number
  /** The volume that it goes on from. */
  base: string | null
  /** Length of the stream. */
  bytes: number
}

async function openInput(): Promise<StreamReader> {
  if (process.stdin.isTTY) {
    const what = 'the stream comes from a file or another command, not from a terminal'
    throw new ThinfsError('BAD_ARGUMENT', what)
  }
  const { StreamReader } = await import('../streams/index.js')
  return await StreamReader.open(process.stdin)
}

async function printToken(pool: string, name: string, output: Output): Promise<void> {
  const found = await withPool(pool, 'read', async admin =>
    (await admin.partials()).find(partial => partial.name === name),
  )
  if (found === undefined) {
    const what = `${name}: no part of a stream is kept for it`
    throw new ThinfsError('VOLUME_MISSING', what)
  }
  const { tokenOf } = await import('../streams/index.js')
  const token = tokenOf(found)
  print(output, { ...found, token }, token)
}

const requestFor = (name: string, { size, base, content, resume }: StreamHeader) => ({
  ...{ name, size },
  ...(base !== null && { base: base.content }),
  ...(content !== null && { content }),
  ...(resume > 0 && { resume }),
})

const nameFor = (name: string, { devId }: NewVolume, { content }: StreamHeader) => ({
  ...{ devId, name },
  ...(content !== null && { content }),
})

async function intoMount(
  admin: PoolAdmin,
  place: PoolPlace,
  name: string,
  keeps: boolean,
): Promise<Received> {
  const { mountPoint } = await mountOfPool(admin, place.file)
  const reader = await openInput()
  const { FileTarget } = await import('../streams/index.js')
  const volume = await admin.beginVolume(requestFor(name, reader.header))
  // The volume ends with its last descriptor, unless it has got its name by then.
  const target: FileTarget = new FileTarget(join(mountPoint, volume.file))
  try {
    await target.resize(reader.header.size)
    const keep = keeperOf(admin, { reader, name, volume, keeps }, () => target.sync())
    const received = await fill(target, reader, { name, volume, keep })
    await target.sync()
    await admin.nameVolume(nameFor(name, volume, reader.header))
    return received
  } finally {
    target.close()
  }
}

async function intoFiles(
  config: PoolConfig,
  files: PoolFiles,
  name: string,
  keeps: boolean,
): Promise<Received> {
  const reader = await openInput()
  const { openPool } = await import('../volumes/index.js')
  // Nobody gives space back while this process has the pool.
  const { volumes, close } = await openPool({ ...config, onFull: 'error' }, { files })
  try {
    const volume = await volumes.beginVolume(requestFor(name, reader.header))
    try {
      const { PoolTarget } = await import('./pool-target.js')
      const target = new PoolTarget(volumes, volumes.byDevId(volume.devId)!)
      await target.resize(reader.header.size)
      const keep = keeperOf(volumes, { reader, name, volume, keeps })
      const received = await fill(target, reader, { name, volume, keep })
      await volumes.nameVolume(nameFor(name, volume, reader.header))
      return received
    } finally {
      await volumes.hidden.drop(volume.devId)
    }
  } finally {
    await close()
  }
}

/** Lets what came stay where a stream is cut short. */
interface Keeper {
  /** Bytes of the volume that stay; 0: nothing does. */
  offset: number
  /** At a checkpoint. */
  keep(offset: number): Promise<void>
}

/** @param sync makes the volume's file durable */
function keeperOf(
  admin: PoolAdmin,
  of: { reader: StreamReader; name: string; volume: NewVolume; keeps: boolean },
  sync = async (): Promise<void> => {},
): Keeper {
  const { name } = of
  const { content, base, resume } = of.reader.header
  const { devId } = of.volume
  // A stream whose content has no name cannot go on.
  const keeps = (of.keeps || resume > 0) && content !== null
  return {
    offset: resume,
    async keep(offset) {
      if (!keeps) return
      await sync()
      const from = base === null ? {} : { base: base.content }
      await admin.keepVolume({ devId, name, content, ...from, offset })
      this.offset = offset
    },
  }
}

async function fill(
  target: ReceiveTarget,
  reader: StreamReader,
  of: { name: string; volume: NewVolume; keep: Keeper },
): Promise<Received> {
  const { name, volume, keep } = of
  const { receiveInto, tokenOf } = await import('../streams/index.js')
  const { size, content, base } = reader.header
  const progress = new Progress(`receiving ${name}`, size)
  try {
    await receiveInto(
      target,
      reader,
      (offset, bytes) => progress.show(offset, bytes),
      offset => keep.keep(offset),
    )
  } catch (err) {
    if (!(err instanceof ThinfsError) || keep.offset === 0 || content === null) throw err
    const { offset } = keep
    const token = tokenOf({ content, base: base?.content ?? null, offset })
    const what = `${err.message}; the first ${formatSize(offset)} are kept`
    throw new ThinfsError(err.code, `${what}: thinfs send --resume ${token} goes on`, {
      cause: err,
      errno: err.errno,
    })
  } finally {
    progress.end()
  }
  return { name, size, base: volume.base, bytes: reader.read }
}
