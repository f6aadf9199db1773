import { basename } from 'node:path'
import { ThinfsError } from '../base/index.js'
import { formatSize } from '../config/index.js'
import { findFilesystems, isOn, listLoops, trimFilesystem } from '../host/index.js'
import type { PoolAdmin } from '../volumes/index.js'
import { command, type Output, POOL_HELP, print } from './command.js'
import { mountOfPool, volumeFile, withPool } from './pool.js'

interface Trimmed {
  name: string
  folder: string
  /**
   * By the filesystem's account, which counts what was trimmed before by some, and not by others.
   */
  bytes: number
}

export const trim = command(
  'trim',
  'Give back what the filesystems on volumes do not use, as fstrim does.',
  'thinfs trim /srv/pool web',
)
  .argument('<POOL>', POOL_HELP)
  .argument('[NAME]', 'of the volume; without it, all that have a mounted filesystem')
  .addHelpText(
    'after',
    `
The filesystems are those that are mounted from loop devices on the volume, in any mount namespace;
LVM, LUKS and the like may be between, where they pass discards on. Other volumes have other ways:
e2fsck -fy -E discard for an ext4 that is not mounted, discard=unmap and fstrim in the guest for
QEMU, and fallocate --dig-holes FILE, on a volume that nobody writes to, for blocks that are zeros.`,
  )
  .action(async (pool: string, name: string | undefined, output: Output) => {
    const trimmed: Trimmed[] = []
    let failure: unknown = null
    await withPool(pool, 'read', async (admin, { file }) => {
      const names = name === undefined ? await attached(admin, file) : [name]
      for (const volume of names) {
        try {
          const at = await volumeFile(admin, file, volume)
          for (const folder of await findFilesystems(volume, at, null, 'trimmed')) {
            trimmed.push({ name: volume, folder, bytes: await trimFilesystem(folder) })
          }
        } catch (err) {
          if (name !== undefined || !isNothingToTrim(err)) failure ??= err
        }
      }
    })
    const lines = trimmed.map(({ name, folder, bytes }) => {
      return `${name}: ${folder}: ${formatSize(bytes)} trimmed`
    })
    print(output, trimmed, lines.join('\n'))
    if (failure !== null) throw failure
  })

/** Volumes with loop devices, by the names that they had when these were made. */
async function attached(admin: PoolAdmin, pool: string): Promise<string[]> {
  const mount = await mountOfPool(admin, pool)
  const loops = (await listLoops()).filter(loop => isOn(loop, mount))
  return [...new Set(loops.map(({ backingFile }) => basename(backingFile)))].sort()
}

/** Of one volume of several: it is gone, has no filesystem, or one that does not discard. */
const isNothingToTrim = (err: unknown): boolean =>
  err instanceof ThinfsError &&
  (['VOLUME_MISSING', 'NOT_MOUNTED', 'NOT_SUPPORTED'].includes(err.code) || err.errno === 'EROFS')
