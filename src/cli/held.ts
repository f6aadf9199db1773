/** Volumes that a command reads as they are at one moment, by the pool's own files. */
import { closeSync, openSync } from 'node:fs'
import { join } from 'node:path'
import { errnoOf, ThinfsError } from '../base/index.js'
import type { PoolPlace } from '../config/index.js'
import { ENGINE_FD } from '../control/index.js'
import type { ServedFiles } from '../streams/index.js'
import type { Held, PoolAdmin } from '../volumes/index.js'
import { mountOfPool, withDaemonOr } from './pool.js'
import { flushMaps } from './snapshot.js'

/** How often a mounted pool's files are looked for: an engine may end, and another take its place. */
const TRIES = 5

export interface HeldVolumes extends Held {
  metadata: ServedFiles['metadata']
  data: ServedFiles['data']
}

/**
 * Calls `use` while nothing changes of the volumes. In a mounted pool that can be written to they are
 * held by snapshots without a name, which go with this process; an unmounted one is locked.
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
    (admin, place) => whileServed(admin, place, request, use),
    async (config, files) => {
      const { openPool } = await import('../volumes/index.js')
      const { volumes, close } = await openPool(config, { readOnly: access === 'read', files })
      try {
        const held = await volumes.hold(request)
        try {
          return await use({ ...held, metadata: files.metadata, data: files.data })
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
  const fds: number[] = []
  try {
    for (const { file } of held.volumes) {
      if (file !== null) fds.push(openSync(join(mountPoint, file), 'r'))
    }
    const files = await openServedOf(admin, place)
    try {
      return await use({ ...held, metadata: files.metadata, data: files.data })
    } finally {
      files.close()
    }
  } finally {
    for (const fd of fds) closeSync(fd)
  }
}

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
