import { existsSync, realpathSync } from 'node:fs'
import { resolve } from 'node:path'
import { ThinfsError } from '../base/index.js'
import { formatSize, parseSize } from '../config/index.js'
import { isOn, listLoops, mountOf, mountsOn } from '../host/index.js'
import type { PoolAdmin } from '../volumes/index.js'
import { type Output, poolCommand, print } from './command.js'
import { deviceId } from './device-id.js'
import { mountOfPool, withPool } from './pool.js'

interface Options extends Output {
  size?: string
  externalOrigin?: string
  id?: number
  limit?: string
  reserve?: string
}

export const create = poolCommand(
  'create',
  'Make a thin volume. It takes no space until it is written to.',
  'thinfs create /srv/pool web --size 10G',
)
  .argument('<NAME>', 'of the new volume: its file in the mount')
  .option('--size <size>', 'virtual size: a multiple of 512 bytes')
  .option(
    '--external-origin <file>',
    'a raw image that it shows where nothing was written to it; --size is that of the file then',
  )
  .option('--id <number>', 'device id, 0 to 16777215 (default: the next one)', deviceId)
  .option('--limit <size>', 'the most that it may map: writes beyond fail with ENOSPC')
  .option('--reserve <size>', 'what the pool keeps for it, however full others make it')
  .addHelpText(
    'after',
    `
An external origin is only read, and nothing may write to it: thinfs has it locked, and refuses the
volume (ORIGIN_CHANGED) when its size or its time of change is another one. Snapshots of the volume
have it, too. See docs/VOLUMES.md.`,
  )
  .action(async (pool: string, name: string, options: Options) => {
    // As one that the parser requires, it would be missed before an option that is misspelt is
    // seen.
    const { id, externalOrigin } = options
    if (options.size === undefined && externalOrigin === undefined) {
      throw new ThinfsError(
        'BAD_ARGUMENT',
        "required option '--size <size>' not specified; see thinfs create --help",
      )
    }
    const size = options.size === undefined ? null : parseSize(options.size)
    if (size === 0) {
      const empty = 'touch makes a file without one in the mount, which grows as it is written to'
      throw new ThinfsError('BAD_ARGUMENT', `--size 0: a volume needs a size; ${empty}`)
    }
    const request = {
      name,
      ...(size !== null && { size }),
      ...(id !== undefined && { devId: id }),
      ...(options.limit !== undefined && { limit: parseSize(options.limit) }),
      ...(options.reserve !== undefined && { reserve: parseSize(options.reserve) }),
      ...(externalOrigin !== undefined && { externalOrigin: resolve(externalOrigin) }),
    }
    const volume = await withPool(pool, 'write', async (admin, { file }) => {
      if (externalOrigin !== undefined) await mustBeElsewhere(admin, file, externalOrigin)
      return await admin.create(request)
    })
    const on = externalOrigin === undefined ? '' : `, on ${externalOrigin}`
    print(options, volume, `${name}: ${formatSize(volume.size)}, device id ${volume.devId}${on}`)
  })

/**
 * The engine would wait for itself to read a file that it serves, directly or below a filesystem.
 * @param pool path of its pool.yaml
 * @throws BAD_ARGUMENT
 */
async function mustBeElsewhere(admin: PoolAdmin, pool: string, path: string): Promise<void> {
  if ((await admin.status()).mount === null || !existsSync(path)) return
  const own = await mountOfPool(admin, pool)
  const loops = await listLoops()
  const above = loops.filter(loop => isOn(loop, own)).flatMap(loop => mountsOn(loop.path, loops))
  const devices = [own, ...above.map(({ mount }) => mount)].map(({ device }) => device)
  if (!devices.includes(mountOf(realpathSync(path))?.device ?? '')) return
  throw new ThinfsError('BAD_ARGUMENT', `--external-origin ${path}: it is on a volume of this pool`)
}
