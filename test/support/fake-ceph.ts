/** Clusters of Ceph that are folders, by test/ceph/fake-librbd.c in the place of the library. */
import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Test } from 'tap'
import { mustHaveCeph } from '../../src/ceph/library.js'

const SOURCE = join(import.meta.dirname, '../ceph/fake-librbd.c')

function folderOf(t: Test): string {
  const folder = mkdtempSync(join(tmpdir(), 'thinfs-ceph-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  return folder
}

/** From now on this process has that library. */
export function useFakeCeph(t: Test): void {
  const library = join(folderOf(t), 'librbd.so.1')
  const flags = ['-shared', '-fPIC', '-pthread', '-Wall', '-Wextra', '-O1']
  execFileSync('cc', [...flags, '-o', library, SOURCE])
  mustHaveCeph(library, library)
}

/** A cluster: a folder with its files, and the calls that were made. */
export class FakeCluster {
  readonly folder: string
  readonly conf: string

  /** @param text of ceph.conf */
  constructor(t: Test, text = '') {
    this.folder = folderOf(t)
    this.conf = this.file('ceph.conf')
    writeFileSync(this.conf, text)
  }

  /** Makes an image of the pool `thin`. */
  make(image: string, size: number): void {
    const path = this.file(`thin.${image}`)
    writeFileSync(path, '')
    truncateSync(path, size)
  }

  file(name: string): string {
    return join(this.folder, name)
  }

  get calls(): string {
    return readFileSync(this.file('calls'), 'utf8')
  }

  faults(percent: number, errno: number): void {
    writeFileSync(this.file('faults'), `${percent} ${errno}`)
  }
}
