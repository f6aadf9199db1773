/**
 * Looking into /proc and /sys. Processes end and devices detach while we look: what is gone reads
 * as nothing.
 */
import { constants, readdirSync, readFileSync, readlinkSync } from 'node:fs'

export const list = (path: string): string[] => attempt(() => readdirSync(path)) ?? []
export const read = (path: string): string => attempt(() => readFileSync(path, 'utf8')) ?? ''
export const readLink = (path: string): string => attempt(() => readlinkSync(path)) ?? ''

/** All processes but this one. */
export const otherProcesses = (): number[] =>
  list('/proc')
    .filter(name => /^\d+$/.test(name) && Number(name) !== process.pid)
    .map(Number)

/** Whether a process is in this one's mount namespace: in another one a path is another thing. */
export const isInOwnNamespace = (pid: number): boolean =>
  readLink(`/proc/${pid}/ns/mnt`) === readLink('/proc/self/ns/mnt')

/** `process 123 (bash)` */
export const nameOf = (pid: number): string =>
  `process ${pid} (${read(`/proc/${pid}/comm`).trimEnd()})`

/** A process's descriptors, by the paths of their links, and what those lead to. */
const descriptorsOf = (pid: number): { fd: string; descriptor: string; target: string }[] =>
  list(`/proc/${pid}/fd`).map(fd => {
    const descriptor = `/proc/${pid}/fd/${fd}`
    return { fd, descriptor, target: readLink(descriptor) }
  })

/** The targets of a process's descriptors. */
export const openFiles = (pid: number): string[] => descriptorsOf(pid).map(({ target }) => target)

/** The mark of a file without a name, in the target of a descriptor. Source: proc_pid_fd(5). */
const REMOVED = / \(deleted\)$/

/** Files that a process can read and write and that have no name any more: no log is among them. */
export const removedFiles = (pid: number): { descriptor: string; was: string }[] =>
  descriptorsOf(pid)
    .filter(({ target }) => REMOVED.test(target) && !target.startsWith('/memfd:'))
    .filter(({ fd }) => (flagsOf(pid, fd) & constants.O_RDWR) !== 0)
    .map(({ descriptor, target }) => ({ descriptor, was: target.replace(REMOVED, '') }))

/** The other processes that have a file open and can write to it. */
export const writersOf = (path: string): number[] =>
  otherProcesses().filter(pid =>
    descriptorsOf(pid).some(
      ({ fd, target }) =>
        target === path && (flagsOf(pid, fd) & (constants.O_WRONLY | constants.O_RDWR)) !== 0,
    ),
  )

/** The flags of open(2) of a descriptor of a process. */
const flagsOf = (pid: number, fd: string): number =>
  Number.parseInt(/^flags:\s*([0-7]+)$/m.exec(read(`/proc/${pid}/fdinfo/${fd}`))?.[1] ?? '0', 8)

function attempt<T>(look: () => T): T | null {
  try {
    return look()
  } catch {
    return null
  }
}
