/** Volumes that a command makes for its own use: snapshots that go when it ends. */
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { noRecording, ThinfsError, uselessRecording, volumeMissing } from '../base/index.js'
import type { PoolPlace } from '../config/index.js'
import type { DaemonClient } from '../control/index.js'
import type { RecordReader, ReplayFile } from '../replay/index.js'
import type { Recording } from '../volumes/index.js'
import { namingHolders, volumeFile } from './pool.js'

/** The recording of a volume. @throws NO_RECORDING, VOLUME_MISSING */
export async function recordingOf(daemon: DaemonClient, name: string): Promise<Recording> {
  const found = (await daemon.recordings()).find(({ volume }) => volume === name)
  if (found !== undefined) return found
  const { dm } = await daemon.status()
  const isThere = dm.volumes.some(volume => volume.name === name)
  throw isThere ? noRecording(name) : volumeMissing(name)
}

/** @throws NO_RECORDING for one that is not whole, or is no longer there */
export async function openRecording(place: PoolPlace, recording: Recording): Promise<RecordReader> {
  const { volume, log, data, lost, ended } = recording
  if (lost) throw uselessRecording(volume, `the recording has ended: ${ended}`)
  const { RecordReader } = await import('../replay/index.js')
  return new RecordReader(join(place.folder, log), join(place.folder, data))
}

/**
 * Calls `use` with the content of a snapshot of `origin`, and where it is in the mount.
 * @throws what `use` throws; VOLUME_BUSY when the snapshot is still open afterwards
 */
export async function withSnapshot<T>(
  daemon: DaemonClient,
  { file }: PoolPlace,
  names: { origin: string; name: string },
  use: (content: ReplayFile, path: string) => Promise<T>,
): Promise<T> {
  const { ReplayFile } = await import('../replay/index.js')
  const { name } = names
  await daemon.snapshot(names)
  const remove = (): Promise<void> =>
    onceClosed(() => namingHolders(daemon, file, [name], () => daemon.remove({ names: [name] })))
  let result: T
  try {
    const { path } = await volumeFile(daemon, file, name)
    const content = new ReplayFile(path)
    try {
      result = await use(content, path)
    } finally {
      content.close()
    }
  } catch (err) {
    await remove().catch(() => {})
    throw err
  }
  await remove()
  return result
}

/** Milliseconds in which the kernel tells of a file that was closed, and between two looks. */
const CLOSE_MS = 3000
const LOOK_MS = 50

/** Calls `act` again where it meets a volume that is open: the kernel tells of a close later. */
async function onceClosed(act: () => Promise<void>): Promise<void> {
  const deadline = Date.now() + CLOSE_MS
  for (;;) {
    try {
      return await act()
    } catch (err) {
      const isBusy = err instanceof ThinfsError && err.code === 'VOLUME_BUSY'
      if (!isBusy || Date.now() > deadline) throw err
      await sleep(LOOK_MS)
    }
  }
}

/** The snapshot that a recording begins with. @throws NO_RECORDING when somebody has removed it */
export function baseOf({ volume, base }: Recording): string {
  if (base !== null) return base
  throw uselessRecording(volume, 'the snapshot that it begins with was removed')
}
