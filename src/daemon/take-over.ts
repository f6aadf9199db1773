/** Taking a mounted pool over from an engine whose daemon has died. */
import { ThinfsError } from '../base/index.js'
import type { PoolConfig } from '../config/index.js'
import {
  adminClient,
  connectControlSocket,
  controlSocketPath,
  DescriptorInbox,
  type EngineStart,
  fromResponseError,
  HAND_OVER,
  mustSpeakOurs,
  STOP,
} from '../control/index.js'
import { asMounted, nrMoreDescriptors, PoolFiles, type PoolStatistics } from '../volumes/index.js'

/** The descriptors of an engine that ended for us; they are ours now. */
export interface HandedOver {
  fuseFd: number
  files: PoolFiles
  /** Its counters; null from one that has none. */
  counted: PoolStatistics | null
  /** The engine's parameters. */
  start: EngineStart
}

/**
 * Makes the engine that serves the pool at `mountPoint` without a daemon hand over and end.
 * @returns null when there is no such engine
 * @throws BAD_ARGUMENT when it was mounted with other options: those are the mount's; NOT_SUPPORTED
 *   when it cannot; VERSION_MISMATCH when it is of another thinfs. It goes on serving then.
 */
export async function takeOver(
  config: PoolConfig,
  mountPoint: string,
  mountOptions: readonly string[],
): Promise<HandedOver | null> {
  const connection = await connectControlSocket(controlSocketPath(config.folder))
  if (connection === null) return null
  const inbox = new DescriptorInbox(config.folder)
  try {
    // A daemon that lives knows no such request.
    const start = await connection.sendRequest(HAND_OVER).catch(err => {
      const reason = fromResponseError(err)
      if (reason instanceof ThinfsError && reason.code === 'NOT_SUPPORTED') throw reason
      return null
    })
    if (start === null || start.mountPoint !== mountPoint) return null
    const cure = `thinfs umount ${mountPoint}, then thinfs mount`
    mustSpeakOurs(start.protocol, `the engine that serves ${mountPoint}`, cure)
    const [had, wanted] = [start.mountOptions, mountOptions].map(relevant)
    if (had !== wanted) {
      const detail = `${mountPoint} is mounted with the options "${had}", not "${wanted}"`
      throw new ThinfsError('BAD_ARGUMENT', detail)
    }
    const { fuse: fuseFd, ...fds } = inbox.receive(nrMoreDescriptors(start.config))
    const files = PoolFiles.inherit(
      asMounted(config, start.config),
      fds,
      mountOptions.includes('ro'),
    )
    const counted = await adminClient(connection)
      .statistics()
      .catch(() => null)
    // The connection closes with the process.
    const ended = new Promise<void>(resolve => connection.onDispose(resolve))
    await connection.sendNotification(STOP)
    await ended
    return { fuseFd, files, counted, start }
  } finally {
    inbox.close()
    connection.dispose()
  }
}

const relevant = (options: readonly string[]): string =>
  [...new Set(options)]
    .filter(option => option !== 'defaults')
    .sort()
    .join(',')
