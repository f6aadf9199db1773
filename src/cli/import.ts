import { randomUUID } from 'node:crypto'
import { fstatSync } from 'node:fs'
import { join, parse } from 'node:path'
import { isZero, SECTOR_SIZE, ThinfsError } from '../base/index.js'
import { formatSize, type PoolPlace } from '../config/index.js'
import { copyOut, type ImageLayer, imageChain, rangesOf } from '../host/index.js'
import type { PoolAdmin } from '../volumes/index.js'
import { command, type Output, POOL_HELP, print } from './command.js'
import { STREAM } from './export.js'
import { mountOfPool, placeOfPool, withDaemonOf } from './pool.js'
import { Progress } from './progress.js'

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
  .argument('<IMAGE>', 'the file; no VM may use it; -: standard input, raw')
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
      const format = options.format ?? null
      const imported =
        image === STREAM
          ? [await importStream(admin, place, name, format)]
          : await importChain(admin, place, { image, name, format })
      const lines = imported.map(
        ({ name, size, image }) => `${name}: ${formatSize(size)}, ${image}`,
      )
      print(options, imported, lines.join('\n'))
    })
  })

/** The first bytes of images in formats that are not a disk's own bytes. */
const MAGIC: Readonly<Record<string, string>> = {
  ...{ qcow2: 'QFI\xfb', qed: 'QED\0', vmdk: 'KDMV', vhdx: 'vhdxfile' },
  ...{ vdi: '<<< Oracle VM VirtualBox Disk Image', vpc: 'conectix' },
}

/**
 * Makes a volume of the bytes of a disk that come on standard input; zeros become holes.
 * @throws BAD_ARGUMENT for another format, which has to be a file to be read
 */
async function importStream(
  admin: PoolAdmin,
  place: PoolPlace,
  name: string,
  format: string | null,
): Promise<Imported> {
  if (format !== null && format !== 'raw') {
    const what = `--format ${format}: standard input takes raw; give a FILE`
    throw new ThinfsError('BAD_ARGUMENT', what)
  }
  if (process.stdin.isTTY) {
    const what = 'the disk comes from a file or another command, not from a terminal'
    throw new ThinfsError('BAD_ARGUMENT', what)
  }
  const { mountPoint } = await mountOfPool(admin, place.file)
  await mustBeNew(admin, [name])
  const { FileTarget } = await import('../streams/index.js')
  const { dataBlockSize } = await admin.status()
  const { devId, file } = await admin.beginVolume({ name, size: 0 })
  // The volume ends with its last descriptor, unless it has got its name by then.
  const target = new FileTarget(join(mountPoint, file))
  const input = fstatSync(process.stdin.fd)
  const progress = new Progress(`importing ${name}`, input.isFile() ? input.size : null)
  let size = 0
  try {
    for await (const piece of piecesOf(process.stdin, dataBlockSize)) {
      if (size === 0 && format === null) mustBeRaw(piece)
      if (!isZero(piece)) await target.write(size, piece)
      size += piece.length
      progress.show(size, size)
    }
    if (size === 0) throw new ThinfsError('BAD_ARGUMENT', 'standard input is empty')
    size = wholeSectors(size)
    await target.resize(size)
    await target.sync()
    await admin.nameVolume({ devId, name })
  } finally {
    progress.end()
    target.close()
  }
  return { name, size, image: STREAM }
}

/** @throws BAD_ARGUMENT for bytes that an image in another format begins with */
function mustBeRaw(begin: Buffer): void {
  const text = begin.toString('latin1', 0, 64)
  const found = Object.keys(MAGIC).find(format => text.startsWith(MAGIC[format]!))
  if (found === undefined) return
  const how = `give it as a FILE, or say --format raw where these are the disk's own bytes`
  throw new ThinfsError('BAD_ARGUMENT', `standard input: an image in ${found}: ${how}`)
}

/** The bytes of a stream in pieces of `size`, of which the last may be shorter. */
async function* piecesOf(stream: AsyncIterable<Buffer>, size: number): AsyncGenerator<Buffer> {
  let parts: Buffer[] = []
  let length = 0
  for await (const chunk of stream) {
    parts.push(chunk)
    length += chunk.length
    if (length < size) continue
    const all = Buffer.concat(parts)
    let at = 0
    for (; at + size <= length; at += size) yield all.subarray(at, at + size)
    parts = [all.subarray(at)]
    length -= at
  }
  if (length > 0) yield Buffer.concat(parts)
}

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
const wholeSectors = (size: number): number => Math.ceil(size / SECTOR_SIZE) * SECTOR_SIZE
const sizeOf = ({ size }: ImageLayer): number => wholeSectors(size)

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
