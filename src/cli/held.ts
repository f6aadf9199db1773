/** Volumes that a command reads as they are at one moment, by the pool's own files. */
import { closeSync, openSync, read } from 'node:fs'
import { open } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { errnoOf, ThinfsError, volumeMissing } from '../base/index.js'
import type { PoolPlace } from '../config/index.js'
import { ENGINE_FD } from '../control/index.js'
import type { Committed, ReadMapped, ServedFiles } from '../streams/index.js'
import type { Held, HeldVolume, PoolAdmin, VolumeInfo } from '../volumes/index.js'
import { suggestingName } from './did-you-mean.js'
import { printAll } from './output.js'
import { mountOfPool, volumeFile, withDaemonOr } from './pool.js'
import { flushMaps } from './snapshot.js'

const readLater = promisify(read)

/**
 * How often a mounted pool's files are looked for: an engine may end, and another take its place.
 */
const TRIES = 5

export interface HeldVolumes extends Held {
  metadata: ServedFiles['metadata']
  /** Reads what one of the volumes maps. @throws NOT_SUPPORTED where it cannot be had */
  readerOf(volume: HeldVolume): Promise<ReadMapped>
  /** Prints what was found, once it is sure. */
  print(texts: Iterable<string>): Promise<void>
}

/** How often a pool is looked at whose commits come in between, and the milliseconds until then. */
const COMMIT_TRIES = 20
const COMMIT_PAUSE = 50

/**
 * Calls `use` while nothing changes of the volumes. In a mounted pool that can be written to they
 * are held by snapshots without a name, which go with this process; an unmounted one is locked.
 * @param access for an unmounted pool: read changes nothing of it, and then no content gets a name
 * @param request see `PoolAdmin.hold`
 */
export function withHeld<T>(
  reference: string,
  access: 'read' | 'write',
  request: { names: string[]; identify?: string },
  use: (held: HeldVolumes) => Promise<T>,
): Promise<T> {
  return withDaemonOr(
    reference,
    access,
    async (admin, place) => {
      try {
        return await suggestingName(admin, () => whileServed(admin, place, request, use))
      } catch (err) {
        const isFull = err instanceof ThinfsError && err.code === 'NO_METADATA_SPACE'
        if (!isFull || access === 'write') throw err
        return await asCommitted(admin, place, request.names, { use, full: err })
      }
    },
    async (config, files) => {
      const { openPool } = await import('../volumes/index.js')
      const { volumes, close } = await openPool(config, { readOnly: access === 'read', files })
      try {
        const held = await suggestingName(volumes, () => volumes.hold(request))
        try {
          const { metadata } = files
          const { readFrom } = await import('../streams/index.js')
          const readerOf = async () => readFrom(await files.openData(config))
          return await use({ ...held, metadata, readerOf, print: printAll })
        } finally {
          for (const { file } of held.volumes) {
            const volume = file === null ? undefined : volumes.hidden.find(file)
            if (volume !== undefined) await volumes.hidden.drop(volume.devId)
          }
        }
      } finally {
        await close()
      }
    },
  )
}

async function whileServed<T>(
  admin: PoolAdmin,
  place: PoolPlace,
  request: { names: string[]; identify?: string },
  use: (held: HeldVolumes) => Promise<T>,
): Promise<T> {
  const { mountPoint } = await mountOfPool(admin, place.file)
  for (const name of request.names) await flushMaps(admin, place, name)
  const held = await admin.hold(request)
  const fds = new Map<HeldVolume, number>()
  try {
    for (const volume of held.volumes) {
      if (volume.file !== null) fds.set(volume, openSync(join(mountPoint, volume.file), 'r'))
    }
    const files = await openServedOf(admin, place)
    try {
      const { metadata } = files
      const readerOf = (volume: HeldVolume) => servedReader(files, fds.get(volume) ?? null)
      return await use({ ...held, metadata, readerOf, print: printAll })
    } finally {
      files.close()
    }
  } finally {
    for (const fd of fds.values()) closeSync(fd)
  }
}

/**
 * Calls `use` with volumes as of the last commit, where there is no room for snapshots of them. Its
 * output counts when no commit has come meanwhile; else it is called again.
 * @throws NO_METADATA_SPACE when commits come all the time
 */
async function asCommitted<T>(
  admin: PoolAdmin,
  place: PoolPlace,
  names: readonly string[],
  { use, full }: { use: (held: HeldVolumes) => Promise<T>; full: ThinfsError },
): Promise<T> {
  const { committedOf } = await import('../streams/index.js')
  for (const name of names) await commitBy(admin, place, name)
  const files = await openServedOf(admin, place)
  try {
    for (let tries = 0; tries < COMMIT_TRIES; tries++) {
      const volumes = await admin.list()
      const texts: string[] = []
      let isLast = (): boolean => false
      try {
        const committed = committedOf(files.metadata)
        isLast = committed.isLast
        const result = await use({
          ...committed,
          metadata: files.metadata,
          readerOf: () => servedReader(files, null),
          volumes: names.map(name => committedVolume(name, volumes, committed)),
          async print(all) {
            for (const text of all) texts.push(text)
          },
        })
        if (isLast()) {
          await printAll(texts)
          return result
        }
      } catch (err) {
        // A block that a commit has overwritten looks damaged.
        if (isLast()) throw err
      }
      await sleep(COMMIT_PAUSE)
    }
    throw full
  } finally {
    files.close()
  }
}

/**
 * Reads what a volume of a mounted pool maps: from the pool's data, or from the volume's file,
 * where another machine has the data.
 * @param fd of the volume's file; null for one without
 */
async function servedReader({ data }: ServedFiles, fd: number | null): Promise<ReadMapped> {
  const { readFrom } = await import('../streams/index.js')
  if (data !== null) return readFrom(data)
  if (fd === null) {
    const detail = 'another machine has the data of the pool: this needs room for a snapshot'
    throw new ThinfsError('NOT_SUPPORTED', detail)
  }
  return async (buffer, filled, length, { offset }) => {
    for (let done = 0; done < length; ) {
      const { bytesRead } = await readLater(fd, buffer, filled + done, length - done, offset + done)
      if (bytesRead === 0) throw new ThinfsError('IO_ERROR', 'the volume ended before its end')
      done += bytesRead
    }
  }
}

/** Makes the pool commit what it knows of a volume. */
async function commitBy(admin: PoolAdmin, place: PoolPlace, name: string): Promise<void> {
  const named = (await admin.list()).find(volume => isMeant(volume, name))
  const { path } = await volumeFile(admin, place.file, named?.name ?? name)
  const file = await open(path, 'r')
  try {
    await file.sync()
  } finally {
    await file.close()
  }
}

function committedVolume(
  name: string,
  volumes: readonly VolumeInfo[],
  { devices, dataBlockSize }: Committed,
): HeldVolume {
  const found = volumes.find(volume => isMeant(volume, name))
  const device = found && devices.get(found.devId)
  if (device === undefined) throw volumeMissing(name)
  const { devId, size, externalOrigin } = found!
  return {
    ...{ name: found!.name, devId, size, externalOrigin },
    ...{ mapped: device.mappedBlocks * dataBlockSize, root: device.root },
    ...{ file: null, content: null },
  }
}

/** A name, or the number of a device. */
const isMeant = ({ name, devId }: VolumeInfo, wanted: string): boolean =>
  name === wanted || String(devId) === wanted

/** The files of a mounted pool, as its engine has them open. @throws IO_ERROR */
export async function openServedOf(admin: PoolAdmin, place: PoolPlace): Promise<ServedFiles> {
  const { openServed } = await import('../streams/index.js')
  for (let tries = 1; ; tries++) {
    const { mount } = await admin.status()
    try {
      return openServed(mount!.enginePid, ENGINE_FD)
    } catch (err) {
      if (errnoOf(err) === 'ENOENT' && tries < TRIES) continue
      if (err instanceof ThinfsError) throw err
      const what = `${place.file}: the files of its engine, process ${mount!.enginePid}, cannot be opened`
      throw new ThinfsError('IO_ERROR', what, { cause: err, errno: errnoOf(err) })
    }
  }
}
