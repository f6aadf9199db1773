/** The tools that did not come from us: thin_check and thin_dump, and images that others made. */
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { gunzipSync } from 'node:zlib'
import { XMLParser } from 'fast-xml-parser'

const FIXTURES = join(import.meta.dirname, '..', 'fixtures', 'dm-thin')

/** A metadata image: a file's path, or its bytes. */
export type Image = string | Buffer

export interface ToolResult {
  status: number | null
  stdout: string
  stderr: string
}

export interface DumpedDevice {
  mappedBlocks: number
  transaction: number
  creationTime: number
  snapTime: number
  mappings: Map<number, { dataBlock: number; time: number }>
}

export interface ThinDump {
  time: number
  transaction: number
  dataBlockSize: number
  nrDataBlocks: number
  devices: Map<number, DumpedDevice>
}

/** The raw image of a fixture such as `one-thin`. */
export const fixture = (name: string): Buffer =>
  gunzipSync(readFileSync(join(FIXTURES, `${name}.meta.gz`)))

/** What thin_dump printed for a fixture. */
export const fixtureXml = (name: string): string =>
  readFileSync(join(FIXTURES, `${name}.xml`), 'utf8')

/** The facts of all fixtures: expected.json. */
export const fixtureFacts = (): Record<string, FixtureFacts> =>
  JSON.parse(readFileSync(join(FIXTURES, 'expected.json'), 'utf8'))

export interface FixtureFacts {
  superblock: { time: number; trans_id: number; held_root: number; dbs: number; flags: number }
  data_sm: { nr_blocks: number; nr_allocated: number }
  metadata_sm: { nr_blocks: number; nr_allocated: number }
  actual_metadata_blocks_in_use: number
  actual_data_blocks_in_use: number
  metadata_counts_above_one: Record<string, number>
  data_count_histogram: Record<string, number>
  devices: Record<string, { root: number; levels: number; mapped: number }>
}

export const thinCheck = (image: Image): ToolResult => run('thin_check', [], image)

/** @param options such as `-m` for the metadata snapshot */
export function thinDump(image: Image, ...options: string[]): ThinDump {
  const { status, stdout, stderr } = run('thin_dump', options, image)
  if (status !== 0) throw new Error(`thin_dump: ${status}: ${stderr}`)
  return parseDump(stdout)
}

/** What thin_restore makes of a dump. @param size of the image in bytes */
export function thinRestore(xml: string, size: number): Buffer {
  return inFolder(folder => {
    const input = join(folder, 'xml')
    const output = join(folder, 'metadata')
    writeFileSync(input, xml)
    writeFileSync(output, Buffer.alloc(size))
    const result = spawnSync('thin_restore', ['-i', input, '-o', output], OPTIONS)
    if (result.status !== 0) throw new Error(`thin_restore: ${result.status}: ${result.stderr}`)
    return readFileSync(output)
  })
}

/** What thin_repair makes of an image. */
export function thinRepair(image: Buffer, options: string[]): Buffer {
  return inFolder(folder => {
    const input = join(folder, 'damaged')
    const output = join(folder, 'metadata')
    writeFileSync(input, image)
    writeFileSync(output, Buffer.alloc(image.length))
    const result = spawnSync('thin_repair', ['-i', input, '-o', output, ...options], OPTIONS)
    if (result.status !== 0) throw new Error(`thin_repair: ${result.status}: ${result.stderr}`)
    return readFileSync(output)
  })
}

/** Writes an image to a file for as long as `use` runs: for several tools in a row. */
export const withImage = <T>(image: Buffer, use: (path: string) => T): T =>
  inFolder(folder => {
    const path = join(folder, 'metadata')
    writeFileSync(path, image)
    return use(path)
  })

/** The text that thin_dump prints. */
export function thinDumpXml(image: Image): string {
  const { status, stdout, stderr } = run('thin_dump', [], image)
  if (status !== 0) throw new Error(`thin_dump: ${status}: ${stderr}`)
  return stdout
}

export function parseDump(xml: string): ThinDump {
  const { superblock } = PARSER.parse(xml)
  const devices = new Map<number, DumpedDevice>()
  for (const device of superblock.device ?? []) {
    const mappings = new Map<number, { dataBlock: number; time: number }>()
    for (const single of device.single_mapping ?? []) {
      mappings.set(single.origin_block, { dataBlock: single.data_block, time: single.time })
    }
    for (const range of device.range_mapping ?? []) {
      for (let i = 0; i < range.length; i++) {
        const mapping = { dataBlock: range.data_begin + i, time: range.time }
        mappings.set(range.origin_begin + i, mapping)
      }
    }
    devices.set(device.dev_id, {
      mappedBlocks: device.mapped_blocks,
      transaction: device.transaction,
      creationTime: device.creation_time,
      snapTime: device.snap_time,
      mappings: new Map([...mappings].sort(([a], [b]) => a - b)),
    })
  }
  return {
    time: superblock.time,
    transaction: superblock.transaction,
    dataBlockSize: superblock.data_block_size,
    nrDataBlocks: superblock.nr_data_blocks,
    devices,
  }
}

const OPTIONS = { encoding: 'utf8', timeout: 60_000, maxBuffer: 1 << 30 } as const

const PARSER = new XMLParser({
  ignoreAttributes: false,
  attributeNamePrefix: '',
  parseAttributeValue: true,
  isArray: (name: string) => name === 'device' || name.endsWith('_mapping'),
})

function run(tool: string, options: string[], image: Image): ToolResult {
  if (typeof image === 'string') {
    const { status, stdout, stderr, error } = spawnSync(tool, [...options, image], OPTIONS)
    if (error) throw error
    return { status, stdout, stderr }
  }
  return withImage(image, path => run(tool, options, path))
}

function inFolder<T>(use: (folder: string) => T): T {
  const folder = mkdtempSync(join(tmpdir(), 'thinfs-tools-'))
  try {
    return use(folder)
  } finally {
    rmSync(folder, { recursive: true })
  }
}
