/** fsfreeze(8) around a call. */
import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { text } from 'node:stream/consumers'
import { promisify } from 'node:util'
import { ThinfsError } from '../base/index.js'

/**
 * Freezes $1, says so, and thaws it when its standard input ends: on our word, and also when this
 * process is killed. It runs in a session of its own, out of reach of the terminal's Ctrl-C, and
 * ignores signals that are sent to all processes.
 */
const GUARD =
  'trap "" HUP INT TERM PIPE; fsfreeze -f -- "$1" || exit 1; echo frozen; cat >/dev/null; exec fsfreeze -u -- "$1"'

/**
 * Calls `act` while the filesystem mounted at `folder` is frozen, and thaws it whatever happens.
 * @throws TOOL_FAILED when it cannot be frozen, and nothing was done, or thawed
 */
export async function whileFrozen<T>(folder: string, act: () => Promise<T>): Promise<T> {
  const guard = spawn('sh', ['-c', GUARD, 'sh', folder], { detached: true })
  const complaint = text(guard.stderr)
  const ended = once(guard, 'close') as Promise<[number | null]>
  const isFrozen = await Promise.race([once(guard.stdout, 'data').then(() => true), ended])
  if (isFrozen !== true) throw failure(folder, 'cannot be frozen', await complaint)
  try {
    return await act()
  } finally {
    guard.stdin.end()
    await mustThaw(folder, ended, complaint)
  }
}

async function mustThaw(
  folder: string,
  ended: Promise<[number | null]>,
  complaint: Promise<string>,
) {
  const [status] = await ended
  if (status === 0) return
  // The guard was killed, so thaw what it left frozen.
  await promisify(execFile)('fsfreeze', ['-u', '--', folder]).catch(async (err: Error) => {
    throw failure(folder, 'is still frozen', (await complaint) || err.message)
  })
}

function failure(folder: string, what: string, complaint: string): ThinfsError {
  return new ThinfsError('TOOL_FAILED', `${folder} ${what}: ${complaint.trim()}`)
}
