/** Who keeps a block device to himself: for a message, after open(2) with O_EXCL was refused. */
import { readdirSync, readFileSync, statSync } from 'node:fs'

/**
 * Says where the device at `path` is mounted, and which devices are made of it.
 * @returns words that follow "it is"; what is not known is "in use by something else"
 */
export function usersOf(path: string): string {
  const { rdev } = statSync(path)
  const number = `${major(rdev)}:${minor(rdev)}`
  const mounts = lines('/proc/self/mountinfo')
    .map(line => line.split(' '))
    .filter(fields => fields[2] === number)
    .map(fields => `mounted at ${fields[4]}`)
  const holders = entries(`/sys/dev/block/${number}/holders`).map(name => `part of /dev/${name}`)
  return [...mounts, ...holders].join(', ') || 'in use by something else'
}

// A dev_t of glibc. Source: gnu_dev_major(3).
const major = (dev: number): number => Math.floor(dev / 256) % 4096
const minor = (dev: number): number => (dev % 256) + Math.floor(dev / 2 ** 20) * 256

const lines = (path: string): string[] => readFileSync(path, 'utf8').split('\n')

function entries(folder: string): string[] {
  try {
    return readdirSync(folder)
  } catch {
    return []
  }
}
