/**
 * The mounts that this process sees, without touching any of them.
 *
 * A mount whose server is gone or slow still has its line here, while stat(2) on it fails or waits.
 * Source: proc_pid_mountinfo(5).
 */
import { readFileSync } from 'node:fs'

/** The type of our mounts. */
export const MOUNT_TYPE = 'fuse.thinfs'

export interface Mount {
  mountPoint: string
  type: string
  /** For a mount of ours, the absolute path of its pool.yaml. */
  source: string
}

/** All mounts, in the order in which they were made. */
export function readMounts(): Mount[] {
  return parseMountInfo(readFileSync('/proc/self/mountinfo', 'utf8'))
}

/** The mount of ours that is on top at `mountPoint`, an absolute path without symbolic links. */
export function thinfsMountAt(mountPoint: string, mounts: Mount[] = readMounts()): Mount | null {
  const top = mounts.findLast(mount => mount.mountPoint === mountPoint)
  return top?.type === MOUNT_TYPE ? top : null
}

/** @param text content of /proc/PID/mountinfo */
export function parseMountInfo(text: string): Mount[] {
  return text
    .split('\n')
    .filter(line => line !== '')
    .map(line => {
      const fields = line.split(' ')
      // The optional fields, from the seventh on, end with a hyphen.
      const [type, source] = fields.slice(fields.indexOf('-', 6) + 1)
      return { mountPoint: unescaped(fields[4]!), type: type!, source: unescaped(source!) }
    })
}

/** Blank, tab, newline and backslash are written as octal numbers, byte by byte. */
function unescaped(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, octal) => String.fromCharCode(Number.parseInt(octal, 8)))
}
