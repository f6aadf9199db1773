/**
 * Looking into /proc and /sys. Processes end and devices detach while we look: what is gone reads
 * as nothing.
 */
import { readdirSync, readFileSync, readlinkSync } from 'node:fs'

export const list = (path: string): string[] => attempt(() => readdirSync(path)) ?? []
export const read = (path: string): string => attempt(() => readFileSync(path, 'utf8')) ?? ''
export const readLink = (path: string): string => attempt(() => readlinkSync(path)) ?? ''

/** All processes but this one. */
export const otherProcesses = (): number[] =>
  list('/proc')
    .filter(name => /^\d+$/.test(name) && Number(name) !== process.pid)
    .map(Number)

/** `process 123 (bash)` */
export const nameOf = (pid: number): string =>
  `process ${pid} (${read(`/proc/${pid}/comm`).trimEnd()})`

/** The targets of a process's descriptors. */
export const openFiles = (pid: number): string[] =>
  list(`/proc/${pid}/fd`).map(fd => readLink(`/proc/${pid}/fd/${fd}`))

function attempt<T>(look: () => T): T | null {
  try {
    return look()
  } catch {
    return null
  }
}
