import { InvalidArgumentError } from 'commander'
import { attachLoop, detachLoop, nameLoop } from '../host/index.js'
import { command, type Output, POOL_HELP, print } from './command.js'
import { volumeFile, withPool } from './pool.js'

interface Options extends Output {
  readOnly?: true
  partscan?: true
  sectorSize?: number
  name?: string
}

export const attach = command(
  'attach',
  'Make a loop device of a volume, by losetup(8) with direct I/O; prints its name.',
  'mkfs.ext4 $(thinfs attach /srv/pool web)',
)
  .argument('<POOL>', POOL_HELP)
  .argument('<NAME>', 'of the volume')
  .option('--read-only', 'a device that cannot be written to')
  .option('--partscan', 'devices for its partitions, too, as /dev/loop0p1')
  .option('--sector-size <bytes>', '512, 1024, 2048 or 4096 (default: 512)', sectorSize)
  .option('--name <name>', 'a name that stays: /run/thinfs/POOL/NAME, which is printed')
  .action(async (pool: string, volume: string, options: Options) => {
    const { name, readOnly, partscan, sectorSize } = options
    if (name !== undefined) {
      const { checkVolumeName } = await import('../config/index.js')
      checkVolumeName(name)
    }
    const { file, of } = await withPool(pool, 'read', async (admin, place) => ({
      file: await volumeFile(admin, place.file, volume),
      of: (await admin.status()).name,
    }))
    const { device, isNew } = await attachLoop(file.path, {
      ...(readOnly && { readOnly }),
      ...(partscan && { partitions: partscan }),
      ...(sectorSize !== undefined && { sectorSize }),
    })
    let path = device
    try {
      if (name !== undefined) path = nameLoop(of, name, device)
    } catch (err) {
      if (isNew) await detachLoop(device)
      throw err
    }
    print(options, { device, ...(name !== undefined && { name: path }) }, path)
  })

function sectorSize(text: string): number {
  if (/^(512|1024|2048|4096)$/.test(text)) return Number(text)
  throw new InvalidArgumentError('A sector has 512, 1024, 2048 or 4096 bytes.')
}
