/** How long an operator waits for a program or a request before he says that it hangs. */
import { readIfThere } from '../mounted-pool.js'

/** What nobody has to wait longer for, where the machine has time for it. */
const PATIENCE_MS = 5000
/** And where it has not. */
const LONGEST_MS = 60_000
const LOOK_EVERY_MS = 200

export class Hang extends Error {}

/** Milliseconds that programs of this machine had to wait for a CPU or a disk since it started. */
function stalledMs(): number {
  const total = (file: string): number =>
    Number(/^some .*total=(\d+)/m.exec(readIfThere(`/proc/pressure/${file}`))?.[1] ?? 0) / 1000
  return total('cpu') + total('io')
}

/**
 * Waits for `ended`, but not for ever.
 * @throws Hang when it takes longer than that, and the machine is not the reason
 */
export async function patiently<T>(what: string, ended: Promise<T>): Promise<T> {
  const begun = Date.now()
  const stalledBefore = stalledMs()
  let timer: NodeJS.Timeout | undefined
  const impatience = new Promise<never>((_, reject) => {
    timer = setInterval(() => {
      const waited = Date.now() - begun
      const excused = stalledMs() - stalledBefore
      if (waited < Math.min(PATIENCE_MS + excused, LONGEST_MS)) return
      reject(new Hang(`${what}: no answer after ${waited} ms (${Math.round(excused)} ms stalled)`))
    }, LOOK_EVERY_MS)
  })
  try {
    return await Promise.race([ended, impatience])
  } finally {
    clearInterval(timer)
  }
}
