import { randomUUID } from 'node:crypto'
import { join, parse } from 'node:path'
import { SECTOR_SIZE, ThinfsError } from '../base/index.js'
import { formatSize, type PoolPlace } from '../config/index.js'
import { copyOut, type ImageLayer, imageChain, rangesOf } from '../host/index.js'
import type { PoolAdmin } from '../volumes/index.js'
import { command, type Output, POOL_HELP, print } from './command.js'
import { mountOfPool, placeOfPool, withDaemonOf } from './pool.js'

interface Options extends Output {
  format?: string
}

interface Imported {
  name: string
  size: number
  /** The file that it has its content of. */
  image: string
}

export const importImage = command(
  'import',
  'Make a volume of a disk image: raw, qcow2, or another that qemu-img reads. Holes stay holes.',
  'thinfs import /srv/pool disk.qcow2 web',
)
  .argument('<POOL>', `${POOL_HELP}; it has to be mounted`)
  .argument('<IMAGE>', 'the file; no VM may use it')
  .argument('<NAME>', 'of the new volume')
  .option('--format <format>', 'of the image (default: as qemu-img finds it)')
  .addHelpText(
    'after',
    `
An overlay comes with the images that it is based on: each becomes a volume NAME@STEM, named after
its file, and the next a snapshot of it that has its own blocks where the overlay has clusters. So
web.qcow2 on golden.qcow2 becomes web@golden, and web. A volume has its name when all of it is there.
What a guest could write to has --format raw: it could pass for an image that leads to other files.`,
  )
  .action(async (pool: string, image: string, name: string, options: Options) => {
    const place = placeOfPool(pool)
    await withDaemonOf(place, async admin => {
      const imported = await importChain(admin, place, {
        ...{ image, name, format: options.format ?? null },
      })
      const lines = imported.map(
        ({ name, size, image }) => `${name}: ${formatSize(size)}, ${image}`,
      )
      print(options, imported, lines.join('\n'))
    })
  })

async function importChain(
  admin: PoolAdmin,
  place: PoolPlace,
  { image, name, format }: { image: string; name: string; format: string | null },
): Promise<Imported[]> {
  const { mountPoint } = await mountOfPool(admin, place.file)
  const layers = await imageChain(image, format)
  const names = namesFor(name, layers)
  await mustBeNew(admin, names)
  const imported: Imported[] = []
  let below: string | null = null
  for (const [i, layer] of layers.entries()) {
    const content = randomUUID()
    await importLayer(admin, mountPoint, { name: names[i]!, layer, below, content })
    imported.push({ name: names[i]!, size: sizeOf(layer), image: layer.path })
    below = content
  }
  return imported
}

/**
 * @param below what streams call the content of the volume that it is a snapshot of; null: none
 * @param content the same of the volume itself
 */
async function importLayer(
  admin: PoolAdmin,
  mountPoint: string,
  volume: { name: string; layer: ImageLayer; below: string | null; content: string },
): Promise<void> {
  const { name, layer, below, content } = volume
  const { FileTarget } = await import('../streams/index.js')
  const size = sizeOf(layer)
  const base = below === null ? {} : { base: below }
  const { devId, file } = await admin.beginVolume({ name, size, ...base })
  // The volume ends with its last descriptor, unless it has got its name by then.
  const target = new FileTarget(join(mountPoint, file))
  try {
    await target.resize(size)
    if (below !== null) {
      for (const { offset, length } of await rangesOf(layer)) await target.discard(offset, length)
    }
    await copyOut(layer, below !== null, target.fd)
    await target.sync()
    await admin.nameVolume({ devId, name, content })
  } finally {
    target.close()
  }
}

/** A volume has whole sectors. */
const sizeOf = ({ size }: ImageLayer): number => Math.ceil(size / SECTOR_SIZE) * SECTOR_SIZE

/** The last layer has the name, each below it the stem of its file after an @. */
function namesFor(name: string, layers: readonly ImageLayer[]): string[] {
  const names = layers.slice(0, -1).map(({ path }) => `${name}@${parse(path).name}`)
  const twice = names.find((other, i) => names.indexOf(other) !== i)
  if (twice === undefined) return [...names, name]
  const what = `two files of the chain would be ${twice}: rename one (qemu-img rebase -u)`
  throw new ThinfsError('VOLUME_EXISTS', what)
}

/** @throws VOLUME_EXISTS before anything was made */
async function mustBeNew(admin: PoolAdmin, names: readonly string[]): Promise<void> {
  const { dm } = await admin.status()
  const there = dm.volumes.find(volume => names.includes(volume.name))
  if (there === undefined) return
  throw new ThinfsError('VOLUME_EXISTS', `${there.name}: a volume has the name`)
}
