/**
 * The trees of damaged metadata: those that the superblock names, or those that a search finds.
 *
 * A search meets the trees of earlier transactions, too, which nobody has overwritten yet. The
 * details of the devices tell them apart: the snapshot clock, the transaction id, and how many
 * blocks each device maps. If the ids of the devices are known, trees with just those come first.
 */
import { MAX_DEV_ID, readU64 } from '../../base/index.js'
import type { Store } from '../../storage/index.js'
import type { Block } from '../blocks/block.js'
import { childAt, isLeaf, keyAt, nrEntries, valueAt } from '../blocks/node.js'
import type { DeviceDetails } from '../device.js'
import { DEVICE_DETAILS } from '../format.js'
import { type LostRange, MAX_DEPTH, SoundNodes } from './sound-nodes.js'

/** The devices that a pair of roots leads to. */
export interface FoundDevices {
  /** Root of each device's mapping tree. */
  roots: Map<number, number>
  details: Map<number, DeviceDetails>
  /** Devices that cannot be known, by ranges of device ids. */
  lostDevices: LostRange[]
  lostDetails: LostRange[]
}

/** The nodes below two roots, as far as they can be read. */
export function devicesOf(
  nodes: SoundNodes,
  mappingRoot: number,
  detailsRoot: number,
): FoundDevices {
  const found: FoundDevices = {
    roots: new Map(),
    details: new Map(),
    lostDevices: [],
    lostDetails: [],
  }
  nodes.visit(mappingRoot, 8, {
    leaf: node => forEach(node, (devId, at) => found.roots.set(devId, readU64(node.view, at))),
    lost: range => found.lostDevices.push(range),
  })
  nodes.visit(detailsRoot, DEVICE_DETAILS.size, {
    leaf: node =>
      forEach(node, (devId, at) => found.details.set(devId, DEVICE_DETAILS.read(node.view, at))),
    lost: range => found.lostDetails.push(range),
  })
  return found
}

function forEach(leaf: Block, use: (key: number, at: number) => void): void {
  for (let slot = 0; slot < nrEntries(leaf); slot++) {
    const key = keyAt(leaf, slot)
    if (key <= MAX_DEV_ID) use(key, valueAt(leaf, slot))
  }
}

/** Kinds of nodes by what their leaves may hold. */
const NONE = 0
const MAPPINGS = 1
const DETAILS = 2

/** Blocks that are looked at in one step. */
const STEP_BLOCKS = 1024

/** The newest trees that a search of all blocks finds; null where there are none. */
export function* searchRoots(
  store: Store,
  wanted: { devIds: ReadonlySet<number> | null; onProgress: (done: number, all: number) => void },
): Generator<void, FoundDevices | null> {
  const nodes = new SoundNodes(store)
  const search = new Search(nodes)
  for (let nr = 1; nr < nodes.nrBlocks; nr++) {
    search.look(nr)
    if (nr % STEP_BLOCKS === 0) {
      wanted.onProgress(nr, nodes.nrBlocks)
      yield
    }
  }
  return search.best(wanted.devIds)
}

class Search {
  readonly #nodes: SoundNodes
  readonly #kind: Uint8Array
  /** Internal nodes, each with its children, until they are known. */
  readonly #internal = new Map<number, number[]>()
  readonly #detailsLeaves: number[] = []
  /** Leaves whose values could be blocks, and those. */
  readonly #maybeTop: number[] = []
  readonly #leafEntries: Uint16Array
  /** The nodes below internal ones. */
  readonly #entries = new Map<number, Below>()

  constructor(nodes: SoundNodes) {
    this.#nodes = nodes
    this.#kind = new Uint8Array(nodes.nrBlocks)
    this.#leafEntries = new Uint16Array(nodes.nrBlocks)
  }

  look(nr: number): void {
    const node = this.#nodes.read(nr, null)
    if (typeof node === 'string') return
    if (!isLeaf(node)) {
      const children = Array.from({ length: nrEntries(node) }, (_, slot) => childAt(node, slot))
      if (children.length > 0) this.#internal.set(nr, children)
      return
    }
    if (node.kind.valueSize === DEVICE_DETAILS.size) {
      this.#kind[nr] = DETAILS
      this.#detailsLeaves.push(nr)
    } else if (node.kind.valueSize === 8) {
      this.#kind[nr] = MAPPINGS
      this.#leafEntries[nr] = nrEntries(node)
      if (this.#couldBeTop(node)) this.#maybeTop.push(nr)
    }
  }

  #couldBeTop(leaf: Block): boolean {
    const nr = nrEntries(leaf)
    if (nr === 0 || keyAt(leaf, nr - 1) > MAX_DEV_ID) return false
    for (let slot = 0; slot < nr; slot++) {
      const root = readU64(leaf.view, valueAt(leaf, slot))
      if (root < 1 || root >= this.#nodes.nrBlocks) return false
    }
    return true
  }

  best(devIds: ReadonlySet<number> | null): FoundDevices | null {
    this.#nameInternal()
    const all = [...this.#internal.keys()]
    const detailRoots = [...this.#detailsLeaves, ...all.filter(nr => this.#kind[nr] === DETAILS)]
    const mayBeTop = new Set(this.#maybeTop)
    const topRoots = [...mayBeTop, ...all.filter(nr => this.#leadsTo(nr, mayBeTop))]
    const tops = topRoots.flatMap(root => this.#topOf(root))
    const details = detailRoots.map(root => this.#detailsOf(root))
    return this.#choose(tops, details, devIds)
  }

  /** Says of each internal node what its leaves are: those of its first child that is known. */
  #nameInternal(): void {
    const nameOf = (nr: number, depth: number): number => {
      const children = this.#internal.get(nr)
      if (children === undefined) return this.#kind[nr] ?? NONE
      if (this.#kind[nr] !== NONE || depth > MAX_DEPTH) return this.#kind[nr]!
      for (const child of children) {
        const kind = nameOf(child, depth + 1)
        if (kind === NONE) continue
        this.#kind[nr] = kind
        return kind
      }
      return NONE
    }
    for (const nr of this.#internal.keys()) nameOf(nr, 0)
  }

  #leadsTo(nr: number, leaves: ReadonlySet<number>): boolean {
    return this.#internal.get(nr)!.every(child => leaves.has(child))
  }

  #topOf(root: number): Top[] {
    const roots = new Map<number, number>()
    this.#nodes.visit(root, 8, {
      leaf: node => forEach(node, (devId, at) => roots.set(devId, readU64(node.view, at))),
      lost: () => {},
    })
    // A device without any mapping has an empty leaf: that is a node of mappings as well.
    const isOf = [...roots.values()].every(nr => this.#kind[nr] !== DETAILS)
    return isOf && roots.size > 0 ? [{ root, roots, ids: idsOf(roots) }] : []
  }

  #detailsOf(root: number): Details {
    const details = new Map<number, DeviceDetails>()
    this.#nodes.visit(root, DEVICE_DETAILS.size, {
      leaf: node =>
        forEach(node, (devId, at) => details.set(devId, DEVICE_DETAILS.read(node.view, at))),
      lost: () => {},
    })
    let [time, transaction, mapped] = [0, 0, 0]
    for (const { creationTime, snapshottedTime, transactionId, mappedBlocks } of details.values()) {
      time = Math.max(time, creationTime, snapshottedTime)
      transaction = Math.max(transaction, transactionId)
      mapped += mappedBlocks
    }
    return { root, details, ids: idsOf(details), time, transaction, mapped }
  }

  #choose(
    tops: readonly Top[],
    details: readonly Details[],
    devIds: ReadonlySet<number> | null,
  ): FoundDevices | null {
    const byIds = new Map<string, Top[]>()
    for (const top of tops) {
      const others = byIds.get(top.ids)
      if (others === undefined) byIds.set(top.ids, [top])
      else others.push(top)
    }
    const known = devIds === null ? null : [...devIds].sort((a, b) => a - b).join()
    const paired = details.filter(({ ids }) => byIds.has(ids))
    paired.sort(
      (a, b) =>
        Number(b.ids === known) - Number(a.ids === known) ||
        b.time - a.time ||
        b.transaction - a.transaction ||
        b.mapped - a.mapped ||
        b.root - a.root,
    )
    let best: [Top, Details] | null = null
    let fewest: Difference = { devices: Number.POSITIVE_INFINITY, blocks: 0 }
    for (const one of paired) {
      const [first] = paired
      // Trees of another time are others': damage is nearer than those.
      if (one.ids !== first!.ids || one.time !== first!.time) break
      if (one.transaction !== first!.transaction) break
      for (const top of byIds.get(one.ids)!.sort((a, b) => b.root - a.root)) {
        const difference = this.#difference(top, one)
        if (!isLess(difference, fewest)) continue
        fewest = difference
        best = [top, one]
      }
      if (fewest.devices === 0) break
    }
    if (best === null) {
      // Without any details: the mappings of most devices, where the block is the last.
      const largest = [...tops].sort((a, b) => b.roots.size - a.roots.size || b.root - a.root)[0]
      return largest === undefined ? null : found(largest, new Map())
    }
    return found(best[0], best[1].details)
  }

  /** By how much the mappings are others than the details say: what cannot be read may be those. */
  #difference(top: Top, { details }: Details): Difference {
    const difference = { devices: 0, blocks: 0 }
    for (const [devId, root] of top.roots) {
      const { mappedBlocks } = details.get(devId)!
      const { entries, isWhole } = this.#below(root)
      if (isWhole ? entries !== mappedBlocks : entries > mappedBlocks) difference.devices++
      else difference.blocks += mappedBlocks - entries
    }
    return difference
  }

  /** The entries below a node that can be read, and whether all can. */
  #below(nr: number, depth = 0): Below {
    const children = this.#internal.get(nr)
    if (children === undefined) {
      const isWhole = this.#kind[nr] === MAPPINGS
      return { entries: isWhole ? this.#leafEntries[nr]! : 0, isWhole }
    }
    const known = this.#entries.get(nr)
    if (known !== undefined) return known
    const below = { entries: 0, isWhole: depth <= MAX_DEPTH }
    // Once for each node: a cycle finds it here.
    this.#entries.set(nr, below)
    for (const child of depth <= MAX_DEPTH ? children : []) {
      const { entries, isWhole } = this.#below(child, depth + 1)
      below.entries += entries
      below.isWhole &&= isWhole
    }
    return below
  }
}

interface Below {
  entries: number
  isWhole: boolean
}

interface Difference {
  /** Devices that have others. */
  devices: number
  /** Mappings that are missing. */
  blocks: number
}

const isLess = (one: Difference, other: Difference): boolean =>
  one.devices < other.devices || (one.devices === other.devices && one.blocks < other.blocks)

interface Top {
  root: number
  roots: Map<number, number>
  /** Its device ids. */
  ids: string
}

interface Details {
  root: number
  details: Map<number, DeviceDetails>
  ids: string
  /** The latest of the snapshot clock and of the transaction ids. */
  time: number
  transaction: number
  /** Blocks that all devices map. */
  mapped: number
}

const idsOf = (devices: ReadonlyMap<number, unknown>): string => [...devices.keys()].join()

const found = ({ roots }: Top, details: Map<number, DeviceDetails>): FoundDevices => ({
  roots,
  details,
  lostDevices: [],
  lostDetails: [],
})
