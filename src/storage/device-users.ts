/** Who keeps a block device to himself: for a message, after open(2) with O_EXCL was refused. */
import { readdirSync, readFileSync, statSync } from 'node:fs'
import { deviceNumber } from '../base/index.js'

/**
 * Says where the device at `path` is mounted, and which devices are made of it.
 * @returns words that follow "it is"; what is not known is "in use by something else"
 */
export function usersOf(path: string): string {
  const number = deviceNumber(statSync(path).rdev)
  const mounts = lines('/proc/self/mountinfo')
    .map(line => line.split(' '))
    .filter(fields => fields[2] === number)
    .map(fields => `mounted at ${fields[4]}`)
  const holders = entries(`/sys/dev/block/${number}/holders`).map(name => `part of /dev/${name}`)
  return [...mounts, ...holders].join(', ') || 'in use by something else'
}

const lines = (path: string): string[] => readFileSync(path, 'utf8').split('\n')

function entries(folder: string): string[] {
  try {
    return readdirSync(folder)
  } catch {
    return []
  }
}
