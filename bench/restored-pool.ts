/**
 * Pools whose metadata thin_restore makes: what is mapped is a hole of the data file, for to write
 * it would take hours.
 */
import { execFile } from 'node:child_process'
import { closeSync, mkdirSync, openSync, rmSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { GIB, KIB, SECTOR_SIZE } from '../src/base/index.js'
import { sparseFile } from './servers.js'

const exec = promisify(execFile)

/** Bytes of a data block, usually. */
export const BLOCK = 64 * KIB
/** Blocks of a run in the data file: no two runs follow each other there. */
const RUN_BLOCKS = 8
export const METADATA_SIZE = 2 * GIB

export interface Entry {
  name: string
  size: number
  /** Data block of each run; none: nothing is mapped. */
  runs?: Iterable<number>
}

export interface Restored {
  /** Bytes of a data block. */
  blockSize: number
  /** Bytes. */
  dataSize: number
  /** The volumes; the first is device 0. */
  entries: readonly Entry[]
}

/** Makes metadata in `file`, which is made. */
export async function restoreMetadata(file: string, pool: Restored): Promise<void> {
  sparseFile(file, METADATA_SIZE)
  const xml = `${file}.xml`
  writeXml(xml, pool)
  await exec('thin_restore', ['--quiet', '-i', xml, '-o', file])
  rmSync(xml)
}

/** Makes a pool in `folder`, which is made, with a copy of such metadata. */
export async function makeRestored(
  folder: string,
  metadata: string,
  { blockSize, dataSize, entries }: Restored,
): Promise<void> {
  mkdirSync(folder)
  sparseFile(join(folder, 'data'), dataSize)
  await exec('cp', ['--sparse=always', metadata, join(folder, 'metadata')])
  writeFileSync(
    join(folder, 'pool.yaml'),
    `pool: restored\ndata_block_size: ${blockSize}\nmetadata: {size: ${METADATA_SIZE}}\n`,
  )
  writeFileSync(join(folder, 'volumes.json'), volumesJson(entries))
}

function writeXml(path: string, { blockSize, dataSize, entries }: Restored): void {
  const file = openSync(path, 'w')
  writeSync(
    file,
    `<superblock uuid="" time="0" transaction="0" version="2" data_block_size="${blockSize / SECTOR_SIZE}" nr_data_blocks="${dataSize / blockSize}">\n`,
  )
  entries.forEach(({ runs = [] }, devId) => {
    let lines: string[] = []
    let begin = 0
    const flush = (): void => {
      writeSync(file, lines.join(''))
      lines = []
    }
    const mapped = [...runs]
    lines.push(
      `<device dev_id="${devId}" mapped_blocks="${mapped.length * RUN_BLOCKS}" transaction="0" creation_time="0" snap_time="0">\n`,
    )
    for (const data of mapped) {
      lines.push(
        `<range_mapping origin_begin="${begin}" data_begin="${data}" length="${RUN_BLOCKS}" time="0"/>\n`,
      )
      begin += RUN_BLOCKS
      if (lines.length >= 65536) flush()
    }
    lines.push('</device>\n')
    flush()
  })
  writeSync(file, '</superblock>\n')
  closeSync(file)
}

function volumesJson(entries: readonly Entry[]): string {
  const volumes = entries.map(({ name, size }, devId) => ({
    ...{ name, dev_id: devId, size, origin: null, created: 0 },
    ...{ mode: 0o600, uid: process.getuid!(), gid: process.getgid!(), removed: false },
  }))
  return JSON.stringify({
    ...{ version: 1, pool: 'restored', transaction_id: 0 },
    ...{ volumes, undo: [], exchange: null },
  })
}

/**
 * The data blocks of runs that fill `size` bytes of the data from `begin` on, in an order that has
 * no two neighbours next to each other.
 */
export function* scattered(size: number, blockSize: number, begin = 0): Iterable<number> {
  const first = begin / blockSize
  const nr = size / blockSize / RUN_BLOCKS
  const step = Math.floor(nr * 0.618) | 1
  for (let i = 0, at = 0; i < nr; i++, at = (at + step) % nr) yield first + at * RUN_BLOCKS
}
