import { inTime, METADATA_BLOCK_SIZE } from '../base/index.js'
import { formatSize, placeOf } from '../config/index.js'
import { connectDaemon } from '../control/index.js'
import { findPool, whoIsStopped } from '../daemon/index.js'
import { MOUNT_TYPE, type Mount, readMounts, thinfsMountAt } from '../host/index.js'
import { command, type Output, print } from './command.js'

/** How long a daemon may take to answer, in milliseconds. */
const PATIENCE = 3000

interface MountedPool {
  /** Null for all that its daemon has not told. */
  name: string | null
  mountPoint: string
  /** Path of pool.yaml. */
  file: string
  mode: string | null
  volumes: number | null
  /** Bytes. */
  data: { used: number; size: number } | null
  metadata: { used: number; size: number } | null
  /** Why its daemon has told nothing; null when it has. */
  unknown: string | null
}

export const pools = command(
  'pools',
  'List the pools that are mounted: where, how large and how full they are.',
  'thinfs pools',
).action(async (output: Output) => {
  const { table } = await import('./table.js')
  // A lookup finds the mount that is over the others.
  const mounts = readMounts().filter(({ type }) => type === MOUNT_TYPE)
  const seen = mounts.filter(({ id, mountPoint }) => thinfsMountAt(mountPoint)?.id === id)
  const found = await Promise.all(seen.map(ask))
  const rows = found.map(({ name, mountPoint, file, mode, volumes, data, metadata, unknown }) => [
    name ?? '-',
    mountPoint,
    data === null ? '-' : formatSize(data.size),
    percent(data),
    percent(metadata),
    volumes === null ? '-' : String(volumes),
    mode ?? `unknown: ${unknown}`,
    file,
  ])
  const heads = ['NAME', 'MOUNTED', 'SIZE', 'DATA%', 'META%', 'VOLUMES', 'MODE', 'POOL']
  print(output, found, table([heads, ...rows], [2, 3, 4, 5]))
})

const percent = (part: MountedPool['data']): string =>
  part === null ? '-' : ((part.used / part.size) * 100).toFixed(2)

/** The answer of a mount's daemon about its pool, or the reason why there is none. */
async function ask({ mountPoint, source }: Mount): Promise<MountedPool> {
  const nothing = { name: null, mode: null, volumes: null, data: null, metadata: null }
  try {
    const place = placeOf(findPool(mountPoint), { reads: true, served: true })
    const { file, folder, ofUser } = place
    const unknown = (why: string): MountedPool => ({ ...nothing, mountPoint, file, unknown: why })
    if (ofUser !== undefined) return unknown(`it is of user ${ofUser}`)
    const daemon = await connectDaemon(place)
    if (daemon === null) return unknown('nobody answers for it')
    try {
      const status = await inTime(PATIENCE, daemon.status(), null)
      if (status === null) return unknown(whoIsStopped(folder) ?? 'its daemon does not answer')
      const { name, mode, volumes, data, metadata, dataBlockSize } = status
      const space = ({ usedBlocks, blocks }: typeof data, blockSize: number) => ({
        used: usedBlocks * blockSize,
        size: blocks * blockSize,
      })
      return {
        ...{ name, mountPoint, file, mode, volumes, unknown: null },
        data: space(data, dataBlockSize),
        metadata: space(metadata, METADATA_BLOCK_SIZE),
      }
    } finally {
      daemon.close()
    }
  } catch (err) {
    return { ...nothing, mountPoint, file: source, unknown: (err as Error).message }
  }
}
