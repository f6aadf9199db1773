/**
 * Serves a folder through a transport, on the FUSE connection at descriptor 3, as a process of its
 * own.
 *
 * Arguments: the transport, the folder, and what an earlier process has negotiated or `null`, as
 * JSON. Messages to the parent: what was negotiated, once it serves; answers to its requests;
 * `unmounted`.
 */
import { type FileSystem, type Negotiated, TRANSPORTS } from '../../src/fuse/index.js'
import { ownDescriptor } from '../../src/fuse/own-descriptor.js'
import { FolderFileSystem } from './folder-file-system.js'

/** What the parent can ask. */
export type ServerRequest =
  | { do: 'invalidate'; ino: number }
  /** Answered with the RECORDED methods that were called: their names and arguments. */
  | { do: 'calls' }
  /** Ends in order, for another to take over. */
  | { do: 'stop' }

const RECORDED = [
  ...(['open', 'release', 'fallocate', 'lseek', 'copyFileRange', 'getxattr'] as const),
  'wait' as const,
]

/** Keeps calls: the names and the arguments that are no objects. */
function recording(fileSystem: FolderFileSystem, calls: unknown[][]): FileSystem {
  for (const method of RECORDED) {
    const call = fileSystem[method].bind(fileSystem) as (...args: unknown[]) => unknown
    const recorded = (...args: unknown[]): unknown => {
      calls.push([method, ...args.filter(arg => typeof arg !== 'object')])
      return call(...args)
    }
    Object.assign(fileSystem, { [method]: recorded })
  }
  return fileSystem
}

/** Whether to do as on a kernel that sends no request again. */
const isOld = process.env.THINFS_TEST_OLD === '1'

function serve(transport: keyof typeof TRANSPORTS, folder: string, negotiated: Negotiated | null) {
  const calls: unknown[][] = []
  const session = TRANSPORTS[transport].serve({
    fd: isOld ? ownDescriptor(3, false) : 3,
    fileSystem: recording(new FolderFileSystem(folder, negotiated === null), calls),
    ...(negotiated ? { negotiated } : {}),
    onInitialized: agreed => process.send?.(agreed),
    onUnmounted: () => process.send?.('unmounted', () => process.exit(0)),
    onFatal: err => {
      console.error(err)
      process.exit(1)
    },
  })
  process.on('message', async (request: ServerRequest) => {
    if (request.do === 'invalidate') await session.invalidate(request.ino, 0)
    if (request.do === 'stop') {
      session.close()
      process.exit(0)
    }
    process.send?.(calls)
  })
  if (negotiated) {
    if (!isOld) session.resend()
    process.send?.(negotiated)
  }
  process.on('disconnect', () => process.exit(1))
}

const [transport, folder, before] = process.argv.slice(2) as [
  keyof typeof TRANSPORTS,
  string,
  string,
]
serve(transport, folder, JSON.parse(before))
