import { mkdtempSync, rmSync, statSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import { ThinfsError } from '../base/index.js'
import { newConfig, type PoolConfig, poolNameOf } from '../config/index.js'
import { findPool, startDaemon } from '../daemon/index.js'
import { command, type Output, print } from './command.js'
import { lostLines } from './lost.js'
import { writeNewConfig } from './new-pool-yaml.js'
import { configOf } from './pool.js'
import { Progress } from './progress.js'
import { markRescued } from './rescue-folder.js'

interface Options extends Output {
  pool?: string
}

export const rescue = command(
  'rescue',
  `Mount a pool read-only, with damaged metadata too, and name what is lost. Nothing of it is changed.`,
  'thinfs rescue disk.img /mnt/rescued',
)
  .argument(
    '<SOURCE>',
    "a pool.yaml, or the folder that has one; or what thinfs adopt takes: LVM's disk or image, Docker's folder",
  )
  .argument('<MOUNTPOINT>', 'a folder')
  .option('--pool <NAME>', 'which one, as in vg/pool, where the source has several')
  .addHelpText(
    'after',
    `
What the damaged metadata does not lead to any more reads as an I/O error; all else as it was. The pool
is served from a copy of the metadata in a folder below /var/tmp, which thinfs umount takes away.`,
  )
  .action(async (source: string, mountPoint: string, { pool, ...output }: Options) => {
    mustBeFolder(mountPoint)
    const { config: from, dataBlockSize } = await poolOf(source, pool)
    const { rescuePool } = await import('../volumes/index.js')
    const folder = mkdtempSync('/var/tmp/thinfs-rescue-')
    try {
      const progress = new Progress('reading', 1)
      const { config, report, names } = await rescuePool(from, folder, dataBlockSize, (done, all) =>
        progress.show(done / all),
      ).finally(() => progress.end())
      await writeNewConfig(config)
      markRescued(folder)
      await startDaemon(config, {
        mountPoint,
        mountOptions: ['ro'],
        foreground: false,
        acceptMetadata: true,
        logLevel: 'info',
      })
      const { ends: _, ...rest } = report
      const lines = [
        ...lostLines(report, names),
        `${report.devices} volumes at ${resolve(mountPoint)}, ${report.mappedBlocks} mappings`,
      ]
      print(output, { mountPoint: resolve(mountPoint), folder, ...rest }, lines.join('\n'))
    } catch (err) {
      rmSync(folder, { recursive: true, force: true })
      throw err
    }
  })

function mustBeFolder(mountPoint: string): void {
  if (statSync(mountPoint, { throwIfNoEntry: false })?.isDirectory()) return
  throw new ThinfsError('BAD_ARGUMENT', `${mountPoint}: no such folder`, { errno: 'ENOENT' })
}

/** A pool of thinfs's, or one that another program made. */
async function poolOf(
  source: string,
  wanted: string | undefined,
): Promise<{ config: PoolConfig; dataBlockSize: number | null }> {
  if (wanted === undefined && isPool(source)) {
    const config = await configOf(source, true)
    return { config, dataBlockSize: config.dataBlockSize }
  }
  const { choosePool, findPools } = await import('../adopt/index.js')
  const found = choosePool(source, await findPools(source), wanted)
  const { metadata, data, volumes } = found
  // The metadata of pool.yaml is yet to be made; volumes.json is not looked for in it.
  const file = join(dirname(metadata.path), 'pool.yaml')
  const config = newConfig(file, { pool: poolNameOf(found.name), dataSize: null, volumes })
  const at = (place: typeof data) => ({
    path: place.path,
    ...(place.extents && { extents: place.extents }),
  })
  return {
    config: {
      ...config,
      data: { size: null, ...at(data) },
      metadata: { size: 'auto', ...at(metadata) },
    },
    dataBlockSize: found.dataBlockSize,
  }
}

function isPool(source: string): boolean {
  if (/\.ya?ml$/.test(source)) return true
  try {
    findPool(source)
  } catch {
    return false
  }
  return statSync(source).isDirectory()
}
