/** Memory that is there when a file in memory grows. */
import { closeSync, openSync, rmSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { GIB, MIB } from '../src/base/index.js'

/** A virtual machine gives back to its host what is free beyond this, or so. */
const AT_HAND = GIB
/** Pages come in any order, and what is fetched while the last are freed is new. */
const PASSES = 2

/**
 * Uses memory in a folder of a tmpfs and frees it again. A virtual machine may have to fetch a page
 * from its host, which takes four times as long as all that a file system does to a new page; those
 * that were in use a moment before are there.
 */
export function haveMemoryAtHand(folder: string): void {
  const path = join(folder, 'at-hand')
  const part = Buffer.alloc(MIB)
  for (let pass = 0; pass < PASSES; pass++) {
    const file = openSync(path, 'w')
    for (let at = 0; at < AT_HAND; at += MIB) writeSync(file, part)
    closeSync(file)
    rmSync(path)
  }
}

/** Bytes that `useScatteredMemory` takes: beyond this, few free pages are single ones. */
export const SCATTERED = 3 * GIB

/**
 * Uses memory in a folder of a tmpfs, for as long as that is mounted. The kernel hands out single
 * pages, from all over, before whole runs of them: whoever wrote his file first was a third slower
 * with 1 MiB at a time than who came last.
 */
export function useScatteredMemory(folder: string): void {
  const part = Buffer.alloc(MIB)
  const file = openSync(join(folder, 'scattered'), 'w')
  for (let at = 0; at < SCATTERED; at += MIB) writeSync(file, part)
  closeSync(file)
}
