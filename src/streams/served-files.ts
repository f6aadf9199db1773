import { openSync, readlinkSync } from 'node:fs'
import { FileStore, type Store } from '../storage/index.js'

export interface ServedFiles {
  metadata: Store
  /** Null where another machine has it. */
  readonly data: Store | null
  close(): void
}

/**
 * Opens the files of a pool, to be read, by way of the process that has them open: where they are,
 * and what has their names now, does not matter. Source: proc(5), /proc/PID/fd.
 * @param fds their descriptors in that process
 * @throws an error with `ENOENT` when the process has ended; NOT_TRUSTED, IO_ERROR
 */
export function openServed(
  pid: number,
  fds: { metadata: number; data: number },
  ofUser?: number,
): ServedFiles {
  const open = (fd: number): FileStore => {
    const path = `/proc/${pid}/fd/${fd}`
    const as = { readOnly: true, ...(ofUser !== undefined && { ofUser }) }
    return FileStore.of(openSync(path, 'r'), path, as)
  }
  const metadata = open(fds.metadata)
  try {
    // The cache in front of it stands in its place.
    const isHere = !readlinkSync(`/proc/${pid}/fd/${fds.data}`).startsWith('/memfd:')
    const data = isHere ? open(fds.data) : null
    return {
      metadata,
      data,
      close() {
        data?.close()
        metadata.close()
      },
    }
  } catch (err) {
    metadata.close()
    throw err
  }
}
