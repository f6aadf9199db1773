import { ThinfsError } from '../base/index.js'
import { listLoops, loopsOnFile, mustBeTakeable, takeAway } from '../host/index.js'
import { command, type Output, POOL_HELP, print } from './command.js'
import { volumeFile, withPool } from './pool.js'

export const umountVolume = command(
  'umount-volume',
  'Unmount the filesystem on a volume, and detach the volume; thaws it first where it is frozen.',
  'thinfs umount-volume /srv/pool web',
)
  .argument('<POOL>', POOL_HELP)
  .argument('<NAME>', 'of the volume')
  .action(async (pool: string, name: string, output: Output) => {
    const file = await withPool(pool, 'read', (admin, place) => volumeFile(admin, place.file, name))
    const devices = loopsOnFile(await listLoops(), file)
    if (devices.length === 0) {
      throw new ThinfsError('NOT_MOUNTED', `${name}: no loop device is attached to it`)
    }
    await mustBeTakeable(devices, `${name}: `)
    const folders: string[] = []
    for (const device of devices) folders.push(...(await takeAway(device, `${name}: `)))
    print(output, { folders, detached: devices.map(({ path }) => path) }, '')
  })
