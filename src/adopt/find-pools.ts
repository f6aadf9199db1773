import { execFile } from 'node:child_process'
import { existsSync, realpathSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import * as z from 'zod'
import { errnoOf, isRemoteAddress, ThinfsError } from '../base/index.js'
import { poolOfDocker } from './docker.js'
import type { FoundPool } from './found-pool.js'
import { poolsOfGroup } from './lvm.js'
import { type PhysicalVolume, readPhysicalVolume } from './physical-volume.js'

/** The part of `sfdisk --json` that says where partitions are. Source: sfdisk(8). */
const PARTITIONS = z.object({
  partitiontable: z.object({
    sectorsize: z.number().default(512),
    partitions: z.array(z.object({ start: z.number() })).default([]),
  }),
})

/**
 * The thin pools in a folder of Docker's, or in a physical volume of LVM or a disk with one, as an
 * image or a device.
 * @throws NOT_A_POOL where there is none; NOT_SUPPORTED, METADATA_CORRUPT, TOOL_FAILED, IO_ERROR
 */
export async function findPools(source: string): Promise<FoundPool[]> {
  if (isRemoteAddress(source)) {
    const what = 'a disk of another machine is not looked at for pools of LVM or Docker'
    const cure = 'data and metadata of a thin pool are served by a pool.yaml with their addresses'
    throw new ThinfsError('NOT_SUPPORTED', `${source}: ${what}; ${cure} (docs/HOSTS.md)`)
  }
  let path: string
  let isFolder: boolean
  try {
    path = realpathSync(source)
    isFolder = statSync(path).isDirectory()
  } catch (err) {
    const missing = errnoOf(err) === 'ENOENT'
    const detail = `${source}: ${missing ? 'no such file or folder' : (err as Error).message}`
    throw new ThinfsError('NOT_A_POOL', detail, { cause: err, errno: errnoOf(err) })
  }
  return isFolder ? inFolder(path) : await inImage(path)
}

function inFolder(path: string): FoundPool[] {
  const below = join(path, 'devicemapper')
  const pool = poolOfDocker(path) ?? (existsSync(below) ? poolOfDocker(below) : null)
  if (pool !== null) return [pool]
  const wanted = 'devicemapper/data and devicemapper/metadata, as Docker has them, are not there'
  throw new ThinfsError('NOT_A_POOL', `${path}: ${wanted}`)
}

async function inImage(path: string): Promise<FoundPool[]> {
  const found = await physicalVolumesIn(path)
  const pools = found.flatMap(({ begin, volume }) => poolsOfGroup({ path, begin }, volume))
  if (pools.length > 0) return pools
  const why =
    found.length > 0
      ? "LVM's volume group there has no thin pool"
      : 'no physical volume of LVM, at its begin or in a partition; other formats than raw have to be converted first, by qemu-img convert'
  throw new ThinfsError('NOT_A_POOL', `${path}: ${why}`)
}

/** The physical volume that the image is, or those in its partitions; `begin` in bytes. */
async function physicalVolumesIn(
  path: string,
): Promise<{ begin: number; volume: PhysicalVolume }[]> {
  const whole = readPhysicalVolume(path, 0)
  if (whole !== null) return [{ begin: 0, volume: whole }]
  return (await partitionsOf(path)).flatMap(begin => {
    const volume = readPhysicalVolume(path, begin)
    return volume === null ? [] : [{ begin, volume }]
  })
}

/** Bytes at which the partitions of an image begin. */
async function partitionsOf(path: string): Promise<number[]> {
  try {
    const { stdout } = await promisify(execFile)('sfdisk', ['--json', '--', path])
    const { partitiontable: table } = PARTITIONS.parse(JSON.parse(stdout))
    return table.partitions.map(({ start }) => start * table.sectorsize)
  } catch (err) {
    if (errnoOf(err) !== 'ENOENT') return [] // it has no partitions
    const detail = `${path}: sfdisk is not installed, which finds partitions: apt install fdisk`
    throw new ThinfsError('TOOL_FAILED', detail, { cause: err })
  }
}
