import { ThinfsError } from '../base/index.js'
import { detachLoop, loopsOn, mountsOf } from '../host/index.js'
import { command, type Output, POOL_HELP, print } from './command.js'
import { volumeFile, withPool } from './pool.js'

export const detach = command(
  'detach',
  'Take away the loop devices of a volume.',
  'thinfs detach /srv/pool web',
)
  .argument('<POOL>', POOL_HELP)
  .argument('<NAME>', 'of the volume')
  .action(async (pool: string, name: string, output: Output) => {
    const file = await withPool(pool, 'read', (admin, config) => volumeFile(admin, config, name))
    const devices = loopsOn(file)
    if (devices.length === 0) {
      throw new ThinfsError('NOT_MOUNTED', `${name}: no loop device is attached to it`)
    }
    for (const device of devices) {
      const [place] = mountsOf(device)
      if (place) {
        throw new ThinfsError('VOLUME_BUSY', `${name}: ${device} is mounted at ${place}`)
      }
    }
    for (const device of devices) await detachLoop(device)
    print(output, { detached: devices }, '')
  })
