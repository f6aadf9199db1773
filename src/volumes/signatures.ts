/** Signatures of the content of a file or device, as mkfs looks for them, by way of wipefs(8). */
import { execFileSync } from 'node:child_process'
import { ThinfsError } from '../base/index.js'

/** More of them would not help a reader. */
const MAX_NAMED = 4

/**
 * @returns such as `a signature of ext4 at byte 1080`; null when nothing is found
 * @throws TOOL_FAILED when wipefs is missing or fails
 */
export function signatureOf(path: string): string | null {
  try {
    const args = ['--noheadings', '--output', 'OFFSET,TYPE', '--', path]
    const options = { encoding: 'utf8' as const, stdio: 'pipe' as const }
    const found = execFileSync('wipefs', args, options)
      .split('\n')
      .map(line => line.trim().split(/\s+/) as [offset: string, type?: string])
      .filter(([offset]) => offset !== '')
      .map(([offset, type]) => `${type ?? 'something'} at byte ${Number(offset)}`)
    if (found.length === 0) return null
    const more = found.length > MAX_NAMED ? ` and ${found.length - MAX_NAMED} more` : ''
    return `a signature of ${found.slice(0, MAX_NAMED).join(', ')}${more}`
  } catch (err) {
    const { code, stderr } = err as { code?: string; stderr?: string }
    const detail = code === 'ENOENT' ? 'wipefs (util-linux) is not installed' : stderr?.trim()
    throw new ThinfsError('TOOL_FAILED', `${path}: ${detail || String(err)}`, { cause: err })
  }
}
