import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import type { Test } from 'tap'
import { MIB } from '../../src/base/index.js'

const FIXTURES = join(import.meta.dirname, '../fixtures')

/** A folder in memory that the test `t` removes. */
export function scratch(t: Test): string {
  const folder = mkdtempSync('/dev/shm/thinfs-adopt-')
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  return folder
}

const sh = (script: string, ...args: string[]): void => {
  execFileSync('bash', ['-euo', 'pipefail', '-c', script, 'bash', ...args], { stdio: 'pipe' })
}

/** LVM's disk as an image, `at` bytes into the file. */
export function lvmImage(path: string, at = 0): void {
  const script = 'zstd -dc "$1" | dd of="$2" bs=1M seek="$3" conv=sparse,notrunc status=none'
  sh(script, join(FIXTURES, 'lvm-pv/pv.img.zst'), path, String(at / MIB))
}

/** /var/lib/docker of a Docker on the kernel's device-mapper. */
export function dockerFolder(parent: string): string {
  sh(
    'tar --zstd -xSf "$1" -C "$2"',
    join(FIXTURES, 'docker-devicemapper/linux-6.1.tar.zst'),
    parent,
  )
  return join(parent, 'docker')
}

/** What LVM and the kernel said of the image: each line's words after the first, by that. */
export function expectedOfLvm(): Map<string, string[][]> {
  const lines = new Map<string, string[][]>()
  const text = readFileSync(join(FIXTURES, 'lvm-pv/expected.txt'), 'utf8')
  for (const line of text.split('\n').filter(Boolean)) {
    const [what, ...words] = line.split(/ +/) as [string, ...string[]]
    lines.set(what, [...(lines.get(what) ?? []), words])
  }
  return lines
}
