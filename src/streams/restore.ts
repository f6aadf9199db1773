/** thin_dump's XML → metadata, as it is read: leaves are written as they fill. */
import { SaxesParser, type SaxesTagPlain } from 'saxes'
import { type DataBlock, MAX_DEV_ID, SECTOR_SIZE, ThinfsError } from '../base/index.js'
import {
  MAX_TIME,
  type MappingWriter,
  MetadataBuilder,
  SUPERBLOCK_VERSION,
  type WrittenLeaf,
} from '../metadata/index.js'
import type { Store } from '../storage/index.js'

export interface RestoreOptions {
  /** 16 bytes of the pool's id: dumps have none. */
  uuid: Buffer
  /** Data block size of the pool, in sectors. */
  dataBlockSectors: number
  /** Data blocks that the pool's data has room for. */
  nrDataBlocks: number
  /** Is told of the bytes that were read. */
  onProgress(bytes: number): void
}

export interface Restored {
  devices: number
  mappedBlocks: number
  transactionId: number
}

/**
 * Makes metadata of a dump. Runs of mappings that several devices share (`def`, `ref`) are shared
 * again.
 * @param target whose content is overwritten; it has a superblock when this resolves
 * @throws BAD_STREAM for what is no dump, or not a whole one; POOL_MISMATCH for that of a pool with
 *   other blocks, or of more data; METADATA_UNSUPPORTED, NO_METADATA_SPACE
 */
export async function restoreXml(
  input: AsyncIterable<Uint8Array>,
  target: Store,
  options: RestoreOptions,
): Promise<Restored> {
  const dump = new DumpReader(target, options)
  const decoder = new TextDecoder()
  let bytes = 0
  for await (const chunk of input) {
    dump.write(decoder.decode(chunk, { stream: true }))
    bytes += chunk.length
    options.onProgress(bytes)
  }
  return await dump.finish()
}

/** Elements, each with those that it may be in. */
const PARENTS: Record<string, readonly string[]> = {
  superblock: [''],
  def: ['superblock'],
  device: ['superblock'],
  ref: ['device'],
  single_mapping: ['device', 'def'],
  range_mapping: ['device', 'def'],
}

interface Head {
  time: number
  transactionId: number
  flags: number
  nrDataBlocks: number
}

interface OpenDevice {
  devId: number
  transactionId: number
  creationTime: number
  snapshottedTime: number
}

class DumpReader {
  readonly #parser = new SaxesParser()
  readonly #builder: MetadataBuilder
  readonly #options: RestoreOptions
  /** The leaves of each `def`. */
  readonly #runs = new Map<string, readonly WrittenLeaf[]>()
  /** The elements that are open. */
  readonly #open: string[] = []
  #head: Head | null = null
  #device: OpenDevice | null = null
  #run = ''
  /** Of the device or run that is open. */
  #mappings: MappingWriter | null = null
  #mappedBlocks = 0

  constructor(target: Store, options: RestoreOptions) {
    this.#builder = new MetadataBuilder(target)
    this.#options = options
    this.#parser.on('error', err => {
      throw this.#bad(err.message.replace(/^\d+:\d+: /, ''))
    })
    this.#parser.on('text', text => {
      if (text.trim() !== '') throw this.#bad(`text: ${JSON.stringify(text.trim().slice(0, 40))}`)
    })
    this.#parser.on('opentag', tag => this.#begin(tag))
    this.#parser.on('closetag', ({ name }) => this.#end(name))
  }

  write(text: string): void {
    this.#parser.write(text)
  }

  async finish(): Promise<Restored> {
    this.#parser.close()
    const { uuid, dataBlockSectors } = this.#options
    const head = this.#head!
    await this.#builder.finish({ ...head, uuid, dataBlockSectors })
    return {
      devices: this.#builder.nrDevices,
      mappedBlocks: this.#mappedBlocks,
      transactionId: head.transactionId,
    }
  }

  #begin(tag: SaxesTagPlain): void {
    const { name } = tag
    const parent = this.#open.at(-1) ?? ''
    if (!PARENTS[name]?.includes(parent)) {
      throw this.#bad(`<${name}> ${parent === '' ? 'as the first element' : `in <${parent}>`}`)
    }
    this.#open.push(name)
    if (name === 'single_mapping') {
      this.#map(this.#number(tag, 'origin_block'), this.#number(tag, 'data_block'), 1, tag)
    } else if (name === 'range_mapping') {
      const [begin, dataBegin] = [
        this.#number(tag, 'origin_begin'),
        this.#number(tag, 'data_begin'),
      ]
      this.#map(begin, dataBegin, this.#number(tag, 'length'), tag)
    } else if (name === 'superblock') this.#head = this.#headOf(tag)
    else if (name === 'ref') this.#share(textOf(tag, 'name'))
    else this.#beginMappings(tag)
  }

  #beginMappings(tag: SaxesTagPlain): void {
    this.#mappings = this.#builder.beginMappings()
    if (tag.name === 'def') {
      this.#run = textOf(tag, 'name')
      if (this.#runs.has(this.#run)) throw this.#bad(`def ${this.#run} is there twice`)
      return
    }
    const devId = this.#number(tag, 'dev_id', MAX_DEV_ID)
    if (this.#builder.hasDevice(devId)) throw this.#bad(`device ${devId} is there twice`)
    const { time } = this.#head!
    this.#device = {
      devId,
      transactionId: this.#number(tag, 'transaction'),
      creationTime: this.#number(tag, 'creation_time', time),
      snapshottedTime: this.#number(tag, 'snap_time', time),
    }
  }

  #end(name: string): void {
    this.#open.pop()
    if (name === 'def') this.#runs.set(this.#run, this.#mappings!.leaves())
    if (name !== 'device') return
    const { devId, ...details } = this.#device!
    const tree = this.#mappings!.finish()
    this.#builder.addDevice(devId, tree, details)
    this.#mappedBlocks += tree.nrEntries
  }

  #headOf(tag: SaxesTagPlain): Head {
    const version = this.#number(tag, 'version', Number.MAX_SAFE_INTEGER, SUPERBLOCK_VERSION)
    if (version !== SUPERBLOCK_VERSION) {
      const what = `the dump is of version ${version}, wanted ${SUPERBLOCK_VERSION}`
      throw new ThinfsError('METADATA_UNSUPPORTED', what)
    }
    const { dataBlockSectors, nrDataBlocks } = this.#options
    const sectors = this.#number(tag, 'data_block_size')
    if (sectors !== dataBlockSectors) {
      const both = `data blocks of ${sectors * SECTOR_SIZE} bytes, the pool's have`
      const what = `the dump has ${both} ${dataBlockSectors * SECTOR_SIZE}`
      throw new ThinfsError('POOL_MISMATCH', what)
    }
    const blocks = this.#number(tag, 'nr_data_blocks')
    if (blocks > nrDataBlocks) {
      const what = `the dump is of a pool of ${blocks} data blocks, the data has ${nrDataBlocks}`
      throw new ThinfsError('POOL_MISMATCH', what)
    }
    return {
      time: this.#number(tag, 'time', MAX_TIME),
      transactionId: this.#number(tag, 'transaction'),
      flags: this.#number(tag, 'flags', 1, 0),
      nrDataBlocks: blocks,
    }
  }

  #map(begin: number, dataBegin: number, length: number, tag: SaxesTagPlain): void {
    const head = this.#head!
    const time = this.#number(tag, 'time', head.time)
    const mappings = this.#mappings!
    // A metadata snapshot, and so a dump of it, does not say how many there are.
    if (head.nrDataBlocks === 0) head.nrDataBlocks = this.#options.nrDataBlocks
    if (length === 0) throw this.#bad(`${tag.name}: length is 0`)
    if (begin <= mappings.lastKey) {
      throw this.#bad(`${tag.name}: block ${begin} comes after block ${mappings.lastKey}`)
    }
    if (dataBegin + length > head.nrDataBlocks) {
      const end = `data block ${dataBegin + length - 1}`
      throw this.#bad(`${tag.name}: ${end} is beyond the data: ${head.nrDataBlocks} blocks`)
    }
    if (begin + length > Number.MAX_SAFE_INTEGER) {
      throw this.#bad(`${tag.name}: block ${begin} is too large`)
    }
    for (let i = 0; i < length; i++) mappings.map(begin + i, (dataBegin + i) as DataBlock, time)
  }

  #share(name: string): void {
    const leaves = this.#runs.get(name)
    if (leaves === undefined) throw this.#bad(`ref: no def before it is ${name}`)
    for (const leaf of leaves) {
      const { lastKey } = this.#mappings!
      if (leaf.firstKey <= lastKey) {
        throw this.#bad(`ref ${name}: block ${leaf.firstKey} comes after block ${lastKey}`)
      }
      this.#mappings!.share(leaf)
    }
  }

  /** @param absent what an attribute counts as that is not there */
  #number(tag: SaxesTagPlain, key: string, most = Number.MAX_SAFE_INTEGER, absent?: number) {
    const text = tag.attributes[key]
    if (text === undefined && absent !== undefined) return absent
    const number = /^\d{1,16}$/.test(text ?? '') ? Number(text) : Number.NaN
    if (number <= most) return number
    const found = text === undefined ? 'is missing' : `is ${JSON.stringify(text.slice(0, 40))}`
    throw this.#bad(`${tag.name}: ${key} ${found}, wanted a number up to ${most}`)
  }

  #bad(what: string): ThinfsError {
    return new ThinfsError('BAD_STREAM', `the dump, line ${this.#parser.line}: ${what}`)
  }
}

const textOf = ({ attributes }: SaxesTagPlain, key: string): string => attributes[key] ?? ''
