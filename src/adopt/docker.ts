/**
 * The pool of Docker's devicemapper driver in its folder, /var/lib/docker/devicemapper: sparse
 * files `devicemapper/data` and `devicemapper/metadata` (loop-lvm), and a JSON file for each
 * device. Source: moby 20.10, daemon/graphdriver/devmapper/deviceset.go, layer/filestore.go.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'
import * as z from 'zod'
import { errnoOf, ioError, MAX_DEV_ID, ThinfsError } from '../base/index.js'
import { type VolumeConfig, whyNotAName } from '../config/index.js'
import type { FoundPool } from './found-pool.js'

/** Files among those of the devices that are of the pool. */
const OF_POOL = ['deviceset-metadata', 'transaction-metadata']

const DEVICE = z.object({
  device_id: z.int().min(0).max(MAX_DEV_ID),
  size: z.int().min(0),
})

/** @returns null for another folder. @throws IO_ERROR, METADATA_CORRUPT */
export function poolOfDocker(folder: string): FoundPool | null {
  const data = join(folder, 'devicemapper', 'data')
  const metadata = join(folder, 'devicemapper', 'metadata')
  const devices = join(folder, 'metadata')
  if (![data, metadata, devices].every(existsSync)) return null
  const notes: string[] = []
  const origins = originsOf(join(dirname(folder), 'image', 'devicemapper', 'layerdb'))
  const volumes: Record<string, VolumeConfig> = {}
  for (const name of list(devices).sort()) {
    if (OF_POOL.includes(name) || name.startsWith('.')) continue
    const why = whyNotAName(name)
    if (why !== null) {
      notes.push(`${JSON.stringify(name)} is left out: ${why}`)
      continue
    }
    const { device_id: id, size } = deviceIn(join(devices, name))
    const origin = origins.get(name)
    volumes[name] = { size, id, ...(origin !== undefined && { snapshotOf: origin }) }
  }
  return {
    name: `docker-${basename(dirname(folder))}`,
    metadata: { path: metadata, extents: null },
    data: { path: data, extents: null },
    discards: 'passdown',
    dataBlockSize: null,
    transactionId: null,
    ...{ volumes, notes },
  }
}

function deviceIn(path: string): z.infer<typeof DEVICE> {
  let json: unknown
  try {
    json = JSON.parse(read(path))
  } catch (err) {
    if (err instanceof ThinfsError) throw err
    throw new ThinfsError('METADATA_CORRUPT', `${path}: not JSON: ${(err as Error).message}`)
  }
  const device = DEVICE.safeParse(json)
  if (device.success) return device.data
  const { path: key, message } = device.error.issues[0]!
  throw new ThinfsError('METADATA_CORRUPT', `${path}: ${key.join('.')}: ${message}`)
}

/** By device: the one that it was made of, as far as Docker's layers tell. */
function originsOf(layers: string): Map<string, string> {
  const origins = new Map<string, string>()
  const textOf = (...path: string[]): string | null => {
    const file = join(layers, ...path)
    return existsSync(file) ? read(file).trim() : null
  }
  /** @param chain as `sha256:` and its digits */
  const deviceOf = (chain: string | null): string =>
    (chain === null ? null : textOf('sha256', chain.replace(/^sha256:/, ''), 'cache-id')) ?? 'base'
  for (const chain of list(join(layers, 'sha256'))) {
    const device = textOf('sha256', chain, 'cache-id')
    if (device !== null) origins.set(device, deviceOf(textOf('sha256', chain, 'parent')))
  }
  for (const container of list(join(layers, 'mounts'))) {
    const device = textOf('mounts', container, 'mount-id')
    const init = textOf('mounts', container, 'init-id')
    const layer = deviceOf(textOf('mounts', container, 'parent'))
    if (init !== null) origins.set(init, layer)
    if (device !== null) origins.set(device, init ?? layer)
  }
  return origins
}

/** Names in a folder; none where it is missing. */
function list(folder: string): string[] {
  try {
    return readdirSync(folder)
  } catch (err) {
    if (errnoOf(err) === 'ENOENT') return []
    throw ioError(folder, err)
  }
}

function read(path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch (err) {
    throw ioError(path, err)
  }
}
