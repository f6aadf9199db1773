import { ThinfsError } from '../base/index.js'
import { detachLoop, isOn, listLoops, loopsOnFile } from '../host/index.js'
import type { PoolAdmin } from '../volumes/index.js'
import { command, type Output, POOL_HELP, print } from './command.js'
import { mountOfPool, volumeFile, withPool } from './pool.js'

export const detach = command(
  'detach',
  'Take away the loop devices of a volume; fails while somebody uses one.',
  'thinfs detach /srv/pool web',
)
  .argument('<POOL>', POOL_HELP)
  .argument('<NAME|/dev/loopN>', 'the volume; or a device, also of a volume that was removed')
  .action(async (pool: string, name: string, output: Output) => {
    const devices = await withPool(pool, 'read', (admin, place) =>
      name.startsWith('/dev/')
        ? deviceOf(admin, place.file, name)
        : devicesOf(admin, place.file, name),
    )
    for (const device of devices) {
      await detachLoop(device, device === name ? '' : `${name}: `)
    }
    print(output, { detached: devices }, '')
  })

async function devicesOf(admin: PoolAdmin, pool: string, name: string): Promise<string[]> {
  const devices = loopsOnFile(await listLoops(), await volumeFile(admin, pool, name))
  if (devices.length > 0) return devices.map(({ path }) => path)
  throw new ThinfsError('NOT_MOUNTED', `${name}: no loop device is attached to it`)
}

async function deviceOf(admin: PoolAdmin, pool: string, path: string): Promise<string[]> {
  const mount = await mountOfPool(admin, pool)
  const device = (await listLoops()).find(loop => loop.path === path)
  if (device !== undefined && isOn(device, mount)) return [path]
  throw new ThinfsError('NOT_MOUNTED', `${path}: it is on no volume of ${pool}`)
}
