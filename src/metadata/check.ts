/**
 * The metadata checker: reads everything that the superblock leads to and compares it with what
 * the space maps say.
 *
 * It has a reader of its own, plain and without a cache, because it must not trust the code that it
 * checks. An error means that something is lost or would be, a warning that nothing is: a leak, a
 * statistic that is off, a node with too few entries. Time and memory are bounded by the size of
 * the metadata whatever it holds: a block is parsed once, a second pointer to it only looks up what
 * was found, and counts of data blocks are kept only where a bitmap describes them.
 * Source of the rules: docs/FORMAT.md. thin_check 0.9 does not look at data counts, mapped_blocks,
 * data blocks beyond the map, times and key sets; these are checked here as well.
 */
import { crc32c } from '@node-rs/crc32'
import { bytes, MAX_DEV_ID, readU64, SECTOR_SIZE, ThinfsError } from '../base/index.js'
import type { Store } from '../storage/index.js'
import { DataCounts } from './check-data-counts.js'
import { Differences, type MetadataProblem } from './check-differences.js'
import { Node } from './check-node.js'
import {
  BITMAP,
  DEVICE_DETAILS,
  ENTRIES_PER_BITMAP,
  INDEX_BLOCK,
  INDEX_ENTRY,
  MAX_DATA_BLOCKS,
  MAX_METADATA_BLOCKS,
  MAX_TIME,
  METADATA_BLOCK_SECTORS,
  METADATA_BLOCK_SIZE,
  maxEntries,
  NODE,
  NODE_INTERNAL,
  NODE_LEAF,
  SALT,
  SPACE_MAP_ROOT,
  SUPERBLOCK,
  SUPERBLOCK_LOCATION,
  SUPERBLOCK_MAGIC,
  SUPERBLOCK_VERSION,
} from './format.js'

export interface MetadataReport {
  problems: MetadataProblem[]
  /** Of the superblock; null when that cannot be read. */
  transactionId: number | null
  /** Thin devices of the pool; those of a metadata snapshot are checked but not named. */
  devices: number[]
  /** Bytes of the data blocks that the pool has; null without a readable superblock. */
  dataSize: number | null
  /** Mappings of all devices together: a block that two devices share counts twice. */
  mappedBlocks: number
  /** Blocks whose stored count is not 0. */
  usedDataBlocks: number
  usedMetadataBlocks: number
}

/** Checks the whole of the metadata in `store`, which must not change meanwhile. Writes nothing. */
export function checkMetadata(store: Store): MetadataReport {
  const steps = checkMetadataInSteps(store)
  for (;;) {
    const step = steps.next()
    if (step.done) return step.value
  }
}

/**
 * The same in steps of some milliseconds, for who has other things to do between them. The first step
 * reads the superblock; what that leads to must not change until the last.
 */
export function checkMetadataInSteps(store: Store): Steps<MetadataReport> {
  return new Checker(store).run()
}

/** What yields now and then and returns a T. */
type Steps<T> = Generator<void, T, void>

/** Problems of one severity that are listed; further ones are only counted. */
const MAX_LISTED = 1000
/** Nodes that are read in one step, and devices that are compared in one. */
const STEP_NODES = 64
const STEP_DEVICES = 512
/** A tree of 4161600 nodes with 84 entries each has four levels; more than this is damage. */
const MAX_LEVELS = 16

/** What a block can be; it must be one of them only. */
const ROLES = [
  'free block',
  'superblock',
  'metadata snapshot',
  'metadata index block',
  'metadata bitmap',
  'metadata overflow node',
  'data index node',
  'data bitmap',
  'data overflow node',
  'details node',
  'top-level node',
  'mapping node',
] as const
type Role = (typeof ROLES)[number]

/** States of a block; a sound one has the height of its subtree (1: leaf or no node) and flags. */
const UNSEEN = 0
const HEIGHT = 0x1f
/** Below the node something could not be read or is out of place. */
const DAMAGED = 0x40
/** The block itself cannot be used. */
const BROKEN = 0x80
/** Its subtree is being read: to meet it again is a cycle. */
const OPEN = 0xff

type Superblock = ReturnType<typeof SUPERBLOCK.read>
type SpaceMapRoot = ReturnType<typeof SPACE_MAP_ROOT.read>

interface Tree {
  /** Names the tree in messages. */
  where: string
  role: Role
  /** 1 for the trees that hang off the leaves of another, whose buffers must stay as they are. */
  tier: 0 | 1
  valueSize: number
  /** All keys are below. */
  keyLimit: number
  /** Called for every leaf when it is first met. */
  leaf(node: Node): Steps<void> | void
}

interface Entry {
  key: number
  view: DataView
  /** Where the value is in `view`. */
  at: number
}

class Checker {
  #store: Store
  #problems: MetadataProblem[] = []
  #found = { error: 0, warning: 0 }
  /** Blocks that may be pointed to: those of the metadata map that the store has. */
  #nrBlocks = 0
  #role = new Uint8Array(0)
  #state = new Uint8Array(0)
  /** Pointers to each metadata block. */
  #pointers = new Uint32Array(0)
  /** Of each sound node: its first key, the last key and the number of entries of its leaves. */
  #firstKey = new Float64Array(0)
  #lastKey = new Float64Array(0)
  #entries = new Float64Array(0)
  /** Something was not read, so more may be in use than was seen: leaks cannot be told. */
  #incomplete = false
  #dataCounts = new DataCounts()
  #nrNodes = 0
  #nodes = Array.from({ length: 2 * MAX_LEVELS }, () => new Node())
  #scratch = new Node()

  constructor(store: Store) {
    this.#store = store
  }

  *run(): Steps<MetadataReport> {
    const report: MetadataReport = {
      problems: this.#problems,
      transactionId: null,
      devices: [],
      dataSize: null,
      mappedBlocks: 0,
      usedDataBlocks: 0,
      usedMetadataBlocks: 0,
    }
    const superblock = this.#readSuperblock(SUPERBLOCK_LOCATION)
    yield
    if (superblock) yield* this.#check(superblock, report)
    for (const severity of ['error', 'warning'] as const) {
      const more = this.#found[severity] - MAX_LISTED
      if (more > 0) this.#problems.push({ severity, message: `${more} more are not listed` })
    }
    return report
  }

  *#check(superblock: Superblock, report: MetadataReport): Steps<void> {
    report.transactionId = superblock.transactionId
    const { view } = this.#scratch
    const metadata = SPACE_MAP_ROOT.read(view, SUPERBLOCK.at.metadataSpaceMap)
    const data = SPACE_MAP_ROOT.read(view, SUPERBLOCK.at.dataSpaceMap)
    report.dataSize = data.nrBlocks * superblock.dataBlockSectors * SECTOR_SIZE
    this.#checkFields('superblock', superblock)
    this.#allocate(metadata)
    if (data.nrBlocks > MAX_DATA_BLOCKS) {
      this.#error(`the data map has ${data.nrBlocks} blocks, wanted at most ${MAX_DATA_BLOCKS}`)
      return
    }

    const bitmaps = this.#readIndexBlock(metadata)
    const metadataOverflow = yield* this.#visitOverflow(
      'metadata',
      metadata.refCountRoot,
      this.#nrBlocks,
    )
    const dataOverflow = yield* this.#visitOverflow('data', data.refCountRoot, data.nrBlocks)
    const dataIndex = yield* this.#visitDataIndex(data)

    Object.assign(report, yield* this.#checkDevices('', superblock, superblock, data.nrBlocks))
    const held = superblock.heldRoot
    if (held !== 0 && this.#point(held, 'metadata snapshot', 'superblock')) {
      const copy = this.#readSuperblock(held)
      if (copy) {
        this.#checkFields(`metadata snapshot ${held}`, copy)
        yield* this.#checkDevices(' of the metadata snapshot', copy, superblock, data.nrBlocks)
      } else this.#incomplete = true
    }

    report.usedMetadataBlocks = yield* this.#compareCounts(
      'metadata',
      metadata,
      bitmaps.entries(),
      {
        expected: block => this.#pointers[block] ?? 0,
        overflow: metadataOverflow,
        // thin_restore counts a scratch block in that it has freed: harmless, and in sound images.
        excessAllowed: 1,
      },
    )
    report.usedDataBlocks = yield* this.#compareCounts(
      'data',
      data,
      this.#dataBitmaps(data, dataIndex),
      {
        expected: block => this.#dataCounts.get(block),
        overflow: dataOverflow,
        excessAllowed: 0,
      },
    )
  }

  /** Reads the superblock or the copy that is a metadata snapshot; null when it cannot be trusted. */
  #readSuperblock(block: number): Superblock | null {
    const where = block === SUPERBLOCK_LOCATION ? 'superblock' : `metadata snapshot ${block}`
    if (!this.#read(this.#scratch, block, SALT.superblock, where)) return null
    const superblock = SUPERBLOCK.read(this.#scratch.view, 0)
    const wanted = (field: string, found: number, value: number): boolean => {
      if (found !== value) this.#error(`${where}: ${field} is ${found}, wanted ${value}`)
      return found === value
    }
    return wanted('magic', superblock.magic, SUPERBLOCK_MAGIC) &&
      wanted('version', superblock.version, SUPERBLOCK_VERSION) &&
      wanted('incompat_flags', superblock.incompatFlags, 0)
      ? superblock
      : null
  }

  #checkFields(where: string, superblock: Superblock): void {
    const { dataBlockSectors: size, metadataBlockSectors, compatRoFlags } = superblock
    const { time, transactionId } = superblock
    // The kernel takes multiples of 128 only; thinfs also makes pools with blocks of 8 to 64.
    if (![8, 16, 32, 64].includes(size) && (size < 128 || size > 2097152 || size % 128 !== 0)) {
      this.#error(
        `${where}: data_block_size is ${size} sectors, wanted a multiple of 128 up to 2097152`,
      )
    }
    if (metadataBlockSectors !== METADATA_BLOCK_SECTORS) {
      this.#error(`${where}: metadata_block_size is ${metadataBlockSectors} sectors, wanted 8`)
    }
    if (compatRoFlags !== 0) {
      this.#error(`${where}: compat_ro_flags is ${compatRoFlags}, wanted 0`)
    }
    if (time > MAX_TIME) this.#error(`${where}: time is ${time}, wanted at most ${MAX_TIME}`)
    if (transactionId > Number.MAX_SAFE_INTEGER) {
      this.#error(`${where}: transaction_id is ${transactionId}, wanted below 2^53`)
    }
  }

  #allocate(metadata: SpaceMapRoot): void {
    const blocks = Math.floor(this.#store.size / METADATA_BLOCK_SIZE)
    const limit = Math.min(blocks, MAX_METADATA_BLOCKS)
    const n = Math.min(metadata.nrBlocks, limit)
    if (metadata.nrBlocks > limit) {
      this.#error(
        `the metadata map has ${metadata.nrBlocks} blocks, wanted at most the ${limit} there are`,
      )
    }
    this.#nrBlocks = n
    this.#role = new Uint8Array(n)
    this.#state = new Uint8Array(n)
    this.#pointers = new Uint32Array(n)
    this.#firstKey = new Float64Array(n)
    this.#lastKey = new Float64Array(n)
    this.#entries = new Float64Array(n)
    this.#role[SUPERBLOCK_LOCATION] = ROLES.indexOf('superblock')
    this.#pointers[SUPERBLOCK_LOCATION] = 1
  }

  // Space maps

  /** @returns the bitmap of each index; 0 for one that cannot be read */
  #readIndexBlock(metadata: SpaceMapRoot): number[] {
    const block = metadata.bitmapRoot
    if (!this.#visitPlain(block, 'metadata index block', 'superblock', SALT.index)) return []
    const { view } = this.#scratch
    const blocks: number[] = []
    for (let i = 0; i * ENTRIES_PER_BITMAP < this.#nrBlocks; i++) {
      const at = INDEX_BLOCK.size + i * INDEX_ENTRY.size + INDEX_ENTRY.at.blockNr
      blocks.push(readU64(view, at))
    }
    const where = `metadata index block ${block}`
    return blocks.map(b => (this.#visitPlain(b, 'metadata bitmap', where, SALT.bitmap) ? b : 0))
  }

  /** @returns the root, or null when not all of the tree can be trusted */
  *#visitOverflow(map: 'metadata' | 'data', root: number, nrBlocks: number): Steps<number | null> {
    const where = `${map} overflow tree`
    const tree: Tree = {
      where,
      role: `${map} overflow node`,
      tier: 0,
      valueSize: 4,
      keyLimit: nrBlocks,
      leaf: node => {
        for (let i = 0; i < node.nrEntries; i++) {
          const count = node.view.getUint32(node.valueAt(i), true)
          if (count > 2) continue
          this.#error(`${where}: block ${node.key(i)} has count ${count}, wanted 3 or more`)
        }
      },
    }
    return (yield* this.#visitRoot(tree, root)) ? root : null
  }

  *#visitDataIndex(data: SpaceMapRoot): Steps<number | null> {
    const tree: Tree = {
      where: 'data index tree',
      role: 'data index node',
      tier: 0,
      valueSize: INDEX_ENTRY.size,
      keyLimit: Math.ceil(data.nrBlocks / ENTRIES_PER_BITMAP),
      leaf: node => {
        for (let i = 0; i < node.nrEntries; i++) {
          const block = readU64(node.view, node.valueAt(i) + INDEX_ENTRY.at.blockNr)
          if (this.#visitPlain(block, 'data bitmap', tree.where, SALT.bitmap)) {
            this.#dataCounts.describe(node.key(i))
          }
        }
      },
    }
    return (yield* this.#visitRoot(tree, data.bitmapRoot)) ? data.bitmapRoot : null
  }

  /** Index and block of each bitmap of the data map, block 0 for one that cannot be read. */
  *#dataBitmaps(data: SpaceMapRoot, root: number | null): Generator<[number, number]> {
    if (root === null) return
    let next = 0
    const expect = (index: number) => {
      if (next < index) this.#error(`data index tree: bitmaps ${next} to ${index - 1} are missing`)
      next = index + 1
    }
    for (const { key, view, at } of this.#entriesOf(root)) {
      expect(key)
      const block = readU64(view, at + INDEX_ENTRY.at.blockNr)
      yield [key, this.#isUsable(block, 'data bitmap') ? block : 0]
    }
    expect(Math.ceil(data.nrBlocks / ENTRIES_PER_BITMAP))
  }

  /**
   * Compares the stored counts of a map with those wanted.
   * @param bitmaps index and block in order, block 0 for one that cannot be used
   * @returns blocks with a count that is not 0
   */
  *#compareCounts(
    map: 'metadata' | 'data',
    root: SpaceMapRoot,
    bitmaps: Iterable<[number, number]>,
    rules: {
      expected: (block: number) => number
      overflow: number | null
      excessAllowed: number
    },
  ): Steps<number> {
    const { view } = this.#scratch
    const differences = new Differences(map, (severity, message) => {
      if (severity === 'error' || !this.#incomplete) this.#add(severity, message)
    })
    const overflow = rules.overflow === null ? null : this.#entriesOf(rules.overflow)
    let large = overflow?.next().value
    const nextLarge = () => {
      large = overflow?.next().value
    }
    const stray = (end: number) => {
      for (; large && large.key < end; nextLarge()) {
        this.#error(`${map} overflow tree: block ${large.key} has an entry, but not in its bitmap`)
      }
    }

    let used = 0
    let nrRead = 0
    for (const [index, bitmap] of bitmaps) {
      const begin = index * ENTRIES_PER_BITMAP
      const end = Math.min(begin + ENTRIES_PER_BITMAP, root.nrBlocks)
      if (bitmap === 0) continue
      yield
      // Nothing can be said of entries for bitmaps that were not read.
      while (large && large.key < begin) nextLarge()
      this.#load(this.#scratch, bitmap)
      nrRead++
      for (let block = begin; block < end; block++) {
        let count = storedCount(view, block - begin)
        if (count === 3) {
          stray(block)
          if (large?.key === block) {
            count = large.view.getUint32(large.at, true)
            nextLarge()
          } else if (overflow) {
            this.#error(`${map} overflow tree: block ${block} has no entry, wanted its count`)
          }
        }
        if (count !== 0) used++
        const wanted = rules.expected(block)
        // Without its tree a count above 2 is not known.
        if (count !== wanted && (count < 3 || overflow || wanted < 3)) {
          differences.add(block, count, wanted)
        }
      }
      stray(end)
      for (let e = end - begin; e < ENTRIES_PER_BITMAP; e++) {
        if (storedCount(view, e) === 0) continue
        this.#warn(`${map} bitmap ${bitmap}: entry ${e} lies beyond the map and is not 0`)
      }
    }
    differences.flush()
    const allRead = nrRead === Math.ceil(root.nrBlocks / ENTRIES_PER_BITMAP)
    const excess = root.nrAllocated - used
    if (allRead && excess !== 0 && excess !== rules.excessAllowed) {
      this.#warn(
        `superblock: nr_allocated of the ${map} map is ${root.nrAllocated}, wanted ${used}`,
      )
    }
    return used
  }

  // Devices

  /**
   * Checks the details and mapping trees that `superblock` names.
   * @param of tells the trees of a metadata snapshot apart in messages
   * @param live the superblock whose time nothing may be later than
   */
  *#checkDevices(
    of: string,
    superblock: Superblock,
    live: Superblock,
    nrDataBlocks: number,
  ): Steps<{ devices: number[]; mappedBlocks: number }> {
    const details: Tree = {
      where: `details tree${of}`,
      role: 'details node',
      tier: 0,
      valueSize: DEVICE_DETAILS.size,
      keyLimit: MAX_DEV_ID + 1,
      leaf: () => {},
    }
    const mapping: Tree = {
      where: '',
      role: 'mapping node',
      tier: 1,
      valueSize: 8,
      keyLimit: Number.MAX_SAFE_INTEGER,
      leaf: node => this.#countMappings(mapping.where, node, live.time, nrDataBlocks),
    }
    const visitRoot = (tree: Tree, root: number) => this.#visitRoot(tree, root)
    function* visitDevices(node: Node): Steps<void> {
      for (let i = 0; i < node.nrEntries; i++) {
        mapping.where = `mapping tree of device ${node.key(i)}${of}`
        yield* visitRoot(mapping, node.u64(i))
      }
    }
    const top: Tree = {
      where: `top-level mapping tree${of}`,
      role: 'top-level node',
      tier: 0,
      valueSize: 8,
      keyLimit: MAX_DEV_ID + 1,
      leaf: node => visitDevices(node),
    }
    if (superblock.time > live.time) {
      this.#error(`metadata snapshot: time is ${superblock.time}, wanted at most ${live.time}`)
    }
    const detailsSound = yield* this.#visitRoot(details, superblock.detailsRoot)
    const topSound = yield* this.#visitRoot(top, superblock.mappingRoot)
    return detailsSound && topSound
      ? yield* this.#compareDevices(of, superblock)
      : { devices: [], mappedBlocks: 0 }
  }

  /** Counts what a leaf of a device maps; it is called once for a leaf, however many devices share it. */
  #countMappings(where: string, node: Node, timeLimit: number, nrDataBlocks: number): void {
    const { view, nrEntries } = node
    for (let i = 0, at = node.valueAt(0); i < nrEntries; i++, at += 8) {
      // A mapping is a data block of 40 bits above a time of 24.
      const low = view.getUint32(at, true)
      const block = view.getUint32(at + 4, true) * 256 + (low >>> 24)
      const time = low & MAX_TIME
      if (block < nrDataBlocks) this.#dataCounts.add(block)
      else {
        this.#error(
          `${where}: virtual block ${node.key(i)} is mapped to data block ${block}, ` +
            `wanted one below ${nrDataBlocks}`,
        )
      }
      if (time > timeLimit) {
        this.#error(
          `${where}: virtual block ${node.key(i)} has time ${time}, wanted at most ${timeLimit}`,
        )
      }
    }
  }

  /** Compares the two trees that have an entry for each device, and the details with what is mapped. */
  *#compareDevices(
    of: string,
    { detailsRoot, mappingRoot, time }: Superblock,
  ): Steps<{ devices: number[]; mappedBlocks: number }> {
    const details = this.#entriesOf(detailsRoot)
    const tops = this.#entriesOf(mappingRoot)
    let detail = details.next().value
    let top = tops.next().value
    const devices: number[] = []
    let mappedBlocks = 0
    while (detail || top) {
      const detailId = detail?.key ?? Number.POSITIVE_INFINITY
      const topId = top?.key ?? Number.POSITIVE_INFINITY
      const devId = Math.min(detailId, topId)
      const where = `device ${devId}${of}`
      devices.push(devId)
      if (devices.length % STEP_DEVICES === 0) yield
      if (detailId > topId) this.#error(`${where} is in the top-level tree, wanted details too`)
      if (topId > detailId) this.#error(`${where} has details, wanted a mapping tree too`)
      const root = top && topId <= detailId ? readU64(top.view, top.at) : -1
      if (detail && detailId <= topId) {
        this.#checkDetails(where, DEVICE_DETAILS.read(detail.view, detail.at), time, root)
      }
      if (this.#isUsable(root, 'mapping node')) mappedBlocks += this.#entries[root]!
      if (detailId <= topId) detail = details.next().value
      if (topId <= detailId) top = tops.next().value
    }
    return { devices, mappedBlocks }
  }

  /** @param root of the device's mapping tree, -1 for none */
  #checkDetails(
    where: string,
    details: ReturnType<typeof DEVICE_DETAILS.read>,
    timeLimit: number,
    root: number,
  ): void {
    const { mappedBlocks, creationTime, snapshottedTime } = details
    if (creationTime > timeLimit) {
      this.#error(`${where}: creation_time is ${creationTime}, wanted at most ${timeLimit}`)
    }
    if (snapshottedTime > timeLimit) {
      this.#error(`${where}: snapshotted_time is ${snapshottedTime}, wanted at most ${timeLimit}`)
    }
    if (root === -1) return
    if (!this.#isUsable(root, 'mapping node') || this.#state[root]! & DAMAGED) {
      this.#error(`${where}: some of the ${mappedBlocks} mapped blocks are in damaged nodes`)
    } else if (mappedBlocks !== this.#entries[root]) {
      this.#error(`${where}: mapped_blocks is ${mappedBlocks}, wanted ${this.#entries[root]}`)
    }
  }

  // B-trees

  /** @returns whether all of the tree is as it should be */
  *#visitRoot(tree: Tree, root: number): Steps<boolean> {
    return ((yield* this.#visit(tree, root, 0)) & (DAMAGED | BROKEN)) === 0
  }

  /** Follows a pointer to a node. @returns its state: DAMAGED, BROKEN, height */
  *#visit(tree: Tree, block: number, depth: number): Steps<number> {
    if (!this.#point(block, tree.role, tree.where)) return BROKEN
    let state = this.#state[block]!
    if (state === OPEN) {
      this.#broken(`${tree.where}: node ${block} is below itself`)
      return BROKEN
    }
    if (state === UNSEEN) {
      this.#state[block] = OPEN
      if (++this.#nrNodes % STEP_NODES === 0) yield
      state = yield* this.#visitNode(tree, block, depth)
      this.#state[block] = state
    }
    return state
  }

  *#visitNode(tree: Tree, block: number, depth: number): Steps<number> {
    const where = `${tree.where}: node ${block}`
    if (depth === MAX_LEVELS) {
      return this.#broken(`${where} is at level ${depth + 1}, wanted at most ${MAX_LEVELS}`)
    }
    const node = this.#nodes[tree.tier * MAX_LEVELS + depth]!
    if (!this.#read(node, block, SALT.node, where)) return BROKEN
    if (!this.#checkNode(tree, node, where, depth)) return BROKEN
    const nr = node.nrEntries
    this.#firstKey[block] = nr > 0 ? node.key(0) : Number.POSITIVE_INFINITY
    this.#lastKey[block] = nr > 0 ? node.key(nr - 1) : Number.NEGATIVE_INFINITY
    if (node.isInternal) return yield* this.#visitChildren(tree, node, block, depth)
    this.#entries[block] = nr
    const steps = tree.leaf(node)
    if (steps) yield* steps
    return 1
  }

  /** What can be said of a node alone. @returns whether its entries can be used */
  #checkNode(tree: Tree, node: Node, where: string, depth: number): boolean {
    const { nrEntries: nr, maxEntries: max, valueSize } = node
    const flags = node.view.getUint32(NODE.at.flags, true)
    const size = node.isInternal ? 8 : tree.valueSize
    const refuse = (what: string): boolean => {
      this.#broken(`${where}: ${what}`)
      return false
    }
    if (flags !== NODE_INTERNAL && flags !== NODE_LEAF) {
      return refuse(`flags is ${flags}, wanted 1 or 2`)
    }
    if (valueSize !== size) return refuse(`value_size is ${valueSize}, wanted ${size}`)
    // Fewer would do for the kernel, which never makes such nodes; thinfs does not read them.
    if (max !== maxEntries(size)) {
      return refuse(`max_entries is ${max}, wanted ${maxEntries(size)}`)
    }
    if (nr > max) return refuse(`nr_entries is ${nr}, wanted at most ${max}`)
    if (nr === 0 && (node.isInternal || depth > 0)) {
      return refuse('nr_entries is 0, wanted at least 1')
    }
    let previous = -1
    for (let i = 0; i < nr; i++) {
      const key = node.key(i)
      if (key <= previous) return refuse(`key ${i} is ${key}, wanted more than ${previous}`)
      previous = key
    }
    if (previous >= tree.keyLimit) {
      return refuse(`the last key is ${previous}, wanted one below ${tree.keyLimit}`)
    }
    // Costs space, loses nothing: kernels before late 2019 could leave a node one entry short.
    if (depth > 0 && nr < max / 3) {
      this.#warn(`${where}: nr_entries is ${nr}, wanted at least ${max / 3}`)
    }
    return true
  }

  *#visitChildren(tree: Tree, node: Node, block: number, depth: number): Steps<number> {
    const where = `${tree.where}: node ${block}`
    const nr = node.nrEntries
    let height = 0
    let damaged = 0
    let entries = 0
    for (let i = 0; i < nr; i++) {
      const child = node.u64(i)
      const state = yield* this.#visit(tree, child, depth + 1)
      damaged |= state & DAMAGED
      if (state & BROKEN) {
        damaged = DAMAGED
        continue
      }
      height ||= state & HEIGHT
      if ((state & HEIGHT) !== height) {
        damaged = DAMAGED
        this.#broken(
          `${where}: child ${child} has height ${state & HEIGHT}, wanted ${height} as its siblings`,
        )
      }
      const begin = node.key(i)
      const end = i + 1 < nr ? node.key(i + 1) : Number.POSITIVE_INFINITY
      const first = this.#firstKey[child]!
      const last = this.#lastKey[child]!
      if (first < begin || last >= end || first > last) {
        damaged = DAMAGED
        this.#broken(
          `${where}: child ${child} has keys ${first} to ${last}, wanted ${begin} to below ${end}`,
        )
      }
      entries += this.#entries[child]!
      this.#lastKey[block] = Math.max(last, this.#lastKey[block]!)
    }
    this.#entries[block] = entries
    return height === 0 ? BROKEN : (height + 1) | damaged
  }

  /**
   * Entries of a tree in order of their keys. Only for trees found sound, whose nodes all lead to
   * other keys: in any other a walk might not end.
   */
  *#entriesOf(block: number): Generator<Entry, undefined> {
    const node = new Node()
    this.#load(node, block)
    const nr = node.nrEntries
    for (let i = 0; i < nr; i++) {
      if (node.isInternal) yield* this.#entriesOf(node.u64(i))
      else yield { key: node.key(i), view: node.view, at: node.valueAt(i) }
    }
    return undefined
  }

  // Blocks

  /** Counts a pointer to `block`. @returns whether it can be a block of that role */
  #point(block: number, role: Role, where: string): boolean {
    if (block < 1 || block >= this.#nrBlocks) {
      this.#broken(`${where}: ${role} ${block} is wanted within 1 to ${this.#nrBlocks - 1}`)
      return false
    }
    this.#pointers[block]!++
    const found = ROLES[this.#role[block]!]!
    if (found === 'free block') this.#role[block] = ROLES.indexOf(role)
    else if (found !== role) {
      this.#broken(`${where}: block ${block} is a ${found} already, wanted a ${role}`)
      return false
    }
    return true
  }

  /** Follows a pointer to a block that has no children and one owner. It is in `#scratch` afterwards. */
  #visitPlain(block: number, role: Role, where: string, salt: number): boolean {
    if (!this.#point(block, role, where)) return false
    if (this.#state[block] !== UNSEEN) {
      this.#error(`${where}: ${role} ${block} has more than one pointer, wanted one`)
      return this.#state[block] !== BROKEN
    }
    const sound = this.#read(this.#scratch, block, salt, `${role} ${block}`)
    this.#state[block] = sound ? 1 : BROKEN
    return sound
  }

  #isUsable(block: number, role: Role): boolean {
    return ROLES[this.#role[block] ?? 0] === role && (this.#state[block]! & BROKEN) === 0
  }

  /** Reads a block and checks what all kinds have: checksum and own location. */
  #read(target: Node, block: number, salt: number, where: string): boolean {
    if (this.#store.size < (block + 1) * METADATA_BLOCK_SIZE) {
      this.#broken(`${where}: the metadata ends at byte ${this.#store.size}, before it`)
      return false
    }
    try {
      this.#load(target, block)
    } catch (err) {
      if (!(err instanceof ThinfsError)) throw err
      this.#broken(`${where}: ${err.message}`)
      return false
    }
    // The three kinds have checksum and location in the same place.
    const found = target.view.getUint32(BITMAP.at.csum, true)
    const wanted = (~crc32c(target.buffer.subarray(4)) ^ salt) >>> 0
    if (found !== wanted) {
      this.#broken(`${where}: checksum is ${found}, wanted ${wanted}`)
      return false
    }
    const location = readU64(target.view, BITMAP.at.blockNr)
    if (location !== block) {
      this.#broken(`${where}: blocknr is ${location}, wanted ${block}`)
      return false
    }
    return true
  }

  #load(target: Node, block: number): void {
    this.#store.read(target.buffer, 0, METADATA_BLOCK_SIZE, bytes(block * METADATA_BLOCK_SIZE))
  }

  // Problems

  #add(severity: MetadataProblem['severity'], message: string): void {
    if (this.#found[severity]++ < MAX_LISTED) this.#problems.push({ severity, message })
  }
  #error(message: string): void {
    this.#add('error', message)
  }
  #warn(message: string): void {
    this.#add('warning', message)
  }
  /** An error that keeps other blocks from being seen. */
  #broken(message: string): typeof BROKEN {
    this.#incomplete = true
    this.#add('error', message)
    return BROKEN
  }
}

/** Count 0 to 2 of entry `e` of a bitmap, 3 for more. The even bit is the high one. */
function storedCount(view: DataView, e: number): number {
  const raw = (view.getUint8(BITMAP.size + (e >>> 2)) >>> (2 * (e & 3))) & 3
  return ((raw & 1) << 1) | (raw >>> 1)
}
