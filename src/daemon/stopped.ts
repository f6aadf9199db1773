/**
 * Processes that serve a pool and were stopped: whoever asks them waits until somebody lets them go
 * on.
 */
import { list, nameOf, read } from '../host/index.js'
import { readDaemonFile } from './daemon-file.js'
import { startOf } from './pool-lock.js'

/**
 * @param folder of the pool
 * @returns a sentence about those that a signal has stopped; null when none is
 */
export function whoIsStopped(folder: string): string | null {
  const mountPoint = readDaemonFile(folder)?.mountPoint
  const stopped = list('/proc').filter(name => {
    if (!/^\d+$/.test(name) || !isStopped(name)) return false
    return mountPoint !== undefined && startOf(Number(name))?.mountPoint === mountPoint
  })
  if (stopped.length === 0) return null
  const names = stopped.map(pid => nameOf(Number(pid))).join(', ')
  return `waiting for ${names}, stopped by a signal; kill -CONT ${stopped.join(' ')} lets it go on`
}

/** Source: proc(5), /proc/pid/stat: the state comes after the name, which is in brackets. */
const isStopped = (pid: string): boolean => /^\d+ \(.*\) [Tt] /s.test(read(`/proc/${pid}/stat`))
