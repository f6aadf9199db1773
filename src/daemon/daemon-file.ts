/**
 * `daemon.json` in the pool's folder: who serves the pool and where, for people and for messages.
 * The lock on the metadata file decides, not this file, which a killed daemon leaves behind.
 */
import { readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { isNoSpace } from '../base/index.js'
import { runtimeFolder } from '../control/index.js'

export interface DaemonRecord {
  pid: number
  mountPoint: string
  /** Seconds since 1970. */
  since: number
}

const pathIn = (folder: string): string => join(runtimeFolder(folder), 'daemon.json')

/** On a disk that is full there is none: a pool can be mounted all the same. */
export function writeDaemonFile(folder: string, record: DaemonRecord): void {
  try {
    writeFileSync(pathIn(folder), `${JSON.stringify(record)}\n`, { mode: 0o600 })
  } catch (err) {
    if (!isNoSpace(err)) throw err
    removeDaemonFile(folder)
  }
}

/** Null when there is none that can be read. */
export function readDaemonFile(folder: string): DaemonRecord | null {
  try {
    return JSON.parse(readFileSync(pathIn(folder), 'utf8'))
  } catch {
    return null
  }
}

/** If that fails, as on a disk that takes no more writes, the file stays, and means nothing. */
export function removeDaemonFile(folder: string): void {
  try {
    rmSync(pathIn(folder), { force: true })
  } catch {}
}
