/** Loop devices on volumes: losetup(8) makes and ends them, /sys and /proc tell of them. */
import { execFile } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { basename } from 'node:path'
import { promisify } from 'node:util'
import { ThinfsError } from '../base/index.js'

/**
 * Attaches a loop device to `file`, or finds the one that is: two on one file would not see each
 * other's caches.
 * @returns the device, such as `/dev/loop0`
 * @throws TOOL_FAILED; VOLUME_BUSY when the one that is there can be written to and should not
 */
export async function attachLoop(file: string, readOnly: boolean): Promise<string> {
  const flags = ['--direct-io=on', '--nooverlap', ...(readOnly ? ['--read-only'] : [])]
  const device = await losetup([...flags, '--find', '--show', file])
  if (readOnly && readFileSync(`/sys/class/block/${basename(device)}/ro`, 'utf8') !== '1\n') {
    throw new ThinfsError('VOLUME_BUSY', `${file}: ${device} is on it and can be written to`)
  }
  return device
}

/** @throws TOOL_FAILED */
export async function detachLoop(device: string): Promise<void> {
  await losetup(['--detach', device])
}

/** Loop devices whose backing file is `file`. */
export function loopsOn(file: string): string[] {
  return readdirSync('/sys/block')
    .filter(name => name.startsWith('loop') && backingFile(name) === file)
    .map(name => `/dev/${name}`)
}

function backingFile(name: string): string | null {
  try {
    return readFileSync(`/sys/block/${name}/loop/backing_file`, 'utf8').slice(0, -1)
  } catch {
    return null // A device without a file has no such entry.
  }
}

/** Where the device, or a partition of it, is mounted, as /proc/self/mountinfo writes it. */
export function mountsOf(device: string): string[] {
  const source = new RegExp(` - \\S+ ${device}(p\\d+)? `)
  return readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .filter(line => source.test(line))
    .map(line => line.split(' ')[4]!)
}

async function losetup(args: string[]): Promise<string> {
  try {
    return (await promisify(execFile)('losetup', args)).stdout.trim()
  } catch (err) {
    const { stderr, code } = err as { stderr?: string; code?: string | number }
    const detail = code === 'ENOENT' ? 'losetup is not installed' : stderr?.trim() || String(err)
    throw new ThinfsError('TOOL_FAILED', detail, { cause: err })
  }
}
