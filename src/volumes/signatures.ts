/** What a file or device holds already, as mkfs looks for it: blkid(8) knows the signatures. */
import { execFileSync } from 'node:child_process'
import { ThinfsError } from '../base/index.js'

/** blkid's exit status for a device without a signature. Source: blkid(8). */
const NOTHING = 2
const SEVERAL = 8

/**
 * @returns such as `a signature of ext4`; null when nothing is found
 * @throws TOOL_FAILED when blkid is missing or fails
 */
export function signatureOf(path: string): string | null {
  try {
    const args = ['--probe', '--output', 'export', '--', path]
    const options = { encoding: 'utf8' as const, stdio: 'pipe' as const }
    const fields = new Map(
      execFileSync('blkid', args, options)
        .split('\n')
        .map(line => line.split('=', 2) as [string, string]),
    )
    const type = fields.get('TYPE')
    const table = fields.get('PTTYPE')
    if (type !== undefined) return `a signature of ${type}`
    return table === undefined ? 'a signature' : `a partition table (${table})`
  } catch (err) {
    const { status, code, stderr } = err as { status?: number; code?: string; stderr?: string }
    if (status === NOTHING) return null
    if (status === SEVERAL) return 'several signatures'
    const detail = code === 'ENOENT' ? 'blkid (util-linux) is not installed' : stderr?.trim()
    throw new ThinfsError('TOOL_FAILED', `${path}: ${detail || String(err)}`, { cause: err })
  }
}
