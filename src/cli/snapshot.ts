import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { stat } from 'node:fs/promises'
import { dirname } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { ThinfsError } from '../base/index.js'
import { formatSize, type PoolPlace } from '../config/index.js'
import { findFilesystems, whileFrozen } from '../host/index.js'
import type { PoolAdmin } from '../volumes/index.js'
import { type Output, poolCommand, print } from './command.js'
import { deviceId } from './device-id.js'
import { volumeFile, withPool } from './pool.js'

interface Options extends Output {
  id?: number
  freeze?: string | true
  suffix?: string
}

export const snapshot = poolCommand(
  'snapshot',
  'Make a writable snapshot of a volume, at once, whatever its size.',
  'thinfs snapshot /srv/pool web web-before-upgrade --freeze /var/www',
)
  .argument('<ORIGIN>', 'the volume to take a snapshot of')
  .argument('[NAME...]', 'of the new volume; with --suffix, more volumes to take one of')
  .option('--id <number>', 'device id, 0 to 16777215 (default: the next one)', deviceId)
  .option(
    '--suffix <suffix>',
    'snapshots of all volumes named, of one moment, each named as its volume with this at the end',
  )
  .option(
    '--freeze [folder]',
    'fsfreeze(8) the filesystem on the origin meanwhile: all that are mounted, or the one of this folder',
  )
  .action(async (pool: string, origin: string, names: string[], options: Options) => {
    const { id, suffix, freeze } = options
    const origins = suffix === undefined ? [origin] : [...new Set([origin, ...names])]
    mustFit(names, options)
    const volumes = await withPool(pool, 'write', async (admin, place) => {
      const take = async () => {
        for (const name of origins) await flushMaps(admin, place, name)
        if (suffix !== undefined) return await admin.snapshotAll({ origins, suffix })
        const request = { origin, name: names[0]!, ...(id !== undefined && { devId: id }) }
        return [await admin.snapshot(request)]
      }
      if (freeze === undefined) return await take()
      if (freeze !== true) await mustNotHold(freeze, place)
      const folders: string[] = []
      for (const name of origins) {
        const file = await volumeFile(admin, place.file, name)
        folders.push(...(await findFilesystems(name, file, freeze === true ? null : freeze)))
      }
      for (const folder of folders) await mustNotHold(folder, place)
      return await whileAllFrozen(folders, take)
    })
    const lines = volumes.map(({ name, size, devId }, i) => {
      return `${name}: ${formatSize(size)}, device id ${devId}, snapshot of ${origins[i]}`
    })
    print(options, suffix === undefined ? volumes[0] : volumes, lines.join('\n'))
  })

/** @throws BAD_ARGUMENT for names and options that do not go together */
function mustFit(names: readonly string[], { id, suffix, freeze }: Options): void {
  if (suffix === undefined) {
    if (names.length === 1) return
    const what = names.length === 0 ? 'NAME is missing' : 'more than one NAME'
    throw new ThinfsError('BAD_ARGUMENT', `${what}: snapshots of several volumes take --suffix`)
  }
  if (id !== undefined) throw new ThinfsError('BAD_ARGUMENT', '--id is for one snapshot')
  if (typeof freeze === 'string' && names.length > 0) {
    const what = '--freeze FOLDER is for one volume; without it, all filesystems are frozen'
    throw new ThinfsError('BAD_ARGUMENT', what)
  }
}

/**
 * How often it is looked whether a flush waits for a write that waits for space, in milliseconds.
 */
const LOOK_PERIOD = 250

function whileAllFrozen<T>(folders: string[], act: () => Promise<T>): Promise<T> {
  const [folder, ...rest] = folders
  return folder === undefined ? act() : whileFrozen(folder, () => whileAllFrozen(rest, act))
}

/** Makes the kernel write back what programs changed in a memory map of the volume's file. */
export async function flushMaps(admin: PoolAdmin, place: PoolPlace, origin: string): Promise<void> {
  let path: string
  try {
    path = (await volumeFile(admin, place.file, origin)).path
  } catch (err) {
    // Nothing is mapped where nothing is mounted, and what is not there the pool names better.
    if (['NOT_MOUNTED', 'VOLUME_MISSING'].includes((err as { code: string }).code)) return
    throw err
  }
  await sync(path, async () => (await admin.status()).writesWaiting > 0)
}

/**
 * fsync(2) of a file by another process: it waits for every write to the file, and nothing can end
 * it while one waits for space.
 * @param isFull whether writes wait for space: then the flush is left alone, and a line says so
 */
async function sync(path: string, isFull: () => Promise<boolean>): Promise<void> {
  const child = spawn('sync', [path], { stdio: ['ignore', 'ignore', 'pipe'] })
  let message = ''
  child.stderr.on('data', chunk => {
    message += chunk
  })
  const ended = once(child, 'close') as Promise<[status: number | null]>
  for (;;) {
    const outcome = await Promise.race([ended, sleep(LOOK_PERIOD)])
    if (outcome !== undefined) {
      const [status] = outcome
      // One that was removed meanwhile the pool names better.
      if (status === 0 || !existsSync(path)) return
      throw new ThinfsError('IO_ERROR', `${path} cannot be flushed: ${message.trim()}`)
    }
    if (!(await isFull())) continue
    child.kill()
    child.stderr.destroy()
    child.unref()
    const what = 'writes wait for space: what programs changed in a memory map may not be in it'
    process.stderr.write(`thinfs: ${what}\n`)
    return
  }
}

/** Frozen, the filesystem of the pool's own files would block the snapshot forever. */
async function mustNotHold(folder: string, place: PoolPlace): Promise<void> {
  const { loadConfig } = await import('../config/index.js')
  const config = loadConfig(place.file)
  const { dev } = await stat(folder).catch((err: NodeJS.ErrnoException) => {
    const what = err.code === 'ENOENT' ? 'no such folder' : err.message
    throw new ThinfsError('BAD_ARGUMENT', `--freeze ${folder}: ${what}`, { cause: err })
  })
  const files = [config.metadata, config.data].flatMap(({ path, remote }) => (remote ? [] : [path]))
  for (const own of [config.folder, ...files.map(dirname)]) {
    if ((await stat(own)).dev === dev) {
      const detail = `${folder}: it cannot be frozen, the pool has files on it (${own})`
      throw new ThinfsError('BAD_ARGUMENT', detail)
    }
  }
}
