import { join } from 'node:path'
import { ThinfsError } from '../base/index.js'
import { formatSize, type PoolConfig, type PoolPlace } from '../config/index.js'
import type { FileTarget, ReceiveTarget, StreamHeader, StreamReader } from '../streams/index.js'
import type { NewVolume, PoolAdmin, PoolFiles } from '../volumes/index.js'
import { command, type Output, POOL_HELP, print } from './command.js'
import { mountOfPool, withDaemonOr } from './pool.js'
import { Progress } from './progress.js'

export const receive = command(
  'receive',
  'Make a volume of what thinfs send wrote, from standard input.',
  'thinfs receive /srv/pool web@monday < web@monday.stream',
)
  .argument('<POOL>', POOL_HELP)
  .argument('<NAME>', 'of the new volume')
  .addHelpText(
    'after',
    `
What differs from an older snapshot goes into a new snapshot of the volume here that has the content
of that one: it is found whatever its name is, and must not have been written to since it was
received (NO_BASE). Block sizes may differ. The volume has its name when all of the stream was found
whole; of a stream that is cut short or damaged (BAD_STREAM) nothing stays, and it cannot be taken
up again.`,
  )
  .action(async (pool: string, name: string, output: Output) => {
    const received = await withDaemonOr(
      pool,
      'write',
      (admin, place) => intoMount(admin, place, name),
      (config, files) => intoFiles(config, files, name),
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

const requestFor = (name: string, { size, base }: StreamHeader) => ({
  ...{ name, size },
  ...(base !== null && { base: base.content }),
})

const nameFor = (name: string, { devId }: NewVolume, { content }: StreamHeader) => ({
  ...{ devId, name },
  ...(content !== null && { content }),
})

async function intoMount(admin: PoolAdmin, place: PoolPlace, name: string): Promise<Received> {
  const { mountPoint } = await mountOfPool(admin, place.file)
  const reader = await openInput()
  const { FileTarget } = await import('../streams/index.js')
  const volume = await admin.beginVolume(requestFor(name, reader.header))
  // The volume ends with its last descriptor, unless it has got its name by then.
  const target: FileTarget = new FileTarget(join(mountPoint, volume.file))
  try {
    await target.resize(reader.header.size)
    const received = await fill(target, reader, name, volume)
    await target.sync()
    await admin.nameVolume(nameFor(name, volume, reader.header))
    return received
  } finally {
    target.close()
  }
}

async function intoFiles(config: PoolConfig, files: PoolFiles, name: string): Promise<Received> {
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
      const received = await fill(target, reader, name, volume)
      await volumes.nameVolume(nameFor(name, volume, reader.header))
      return received
    } finally {
      await volumes.hidden.drop(volume.devId)
    }
  } finally {
    await close()
  }
}

async function fill(
  target: ReceiveTarget,
  reader: StreamReader,
  name: string,
  { base }: NewVolume,
): Promise<Received> {
  const { receiveInto } = await import('../streams/index.js')
  const { size } = reader.header
  const progress = new Progress(`receiving ${name}`, size)
  try {
    await receiveInto(target, reader, (offset, bytes) => progress.show(offset, bytes))
  } finally {
    progress.end()
  }
  return { name, size, base, bytes: reader.read }
}
