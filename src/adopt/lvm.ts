/**
 * The thin pools of a volume group, from the group's text on one of its physical volumes.
 * Source: lvm2, lib/format_text, lib/thin/thin.c; sizes there are in extents and sectors.
 */
import { SECTOR_SIZE, ThinfsError } from '../base/index.js'
import { type Extent, type VolumeConfig, whyNotAName } from '../config/index.js'
import type { FoundPool, Place } from './found-pool.js'
import { type LvmSection, type LvmValue, parseLvmText } from './lvm-text.js'
import type { PhysicalVolume } from './physical-volume.js'

/** The file that a physical volume is in. */
export interface Image {
  path: string
  /** Bytes of `path` before it: those of a partition table. */
  begin: number
}

/**
 * @returns the thin pools of the volume group that the physical volume belongs to
 * @throws METADATA_CORRUPT; NOT_SUPPORTED where the volume does not describe its group
 */
export function poolsOfGroup(image: Image, volume: PhysicalVolume): FoundPool[] {
  const { path } = image
  if (volume.text === null) {
    const what = 'this physical volume has no description of its group: give another one of it'
    throw new ThinfsError('NOT_SUPPORTED', `${path}: ${what}`)
  }
  const found = [...parseLvmText(volume.text).sections][0]
  if (found === undefined) throw corrupt(path, 'a volume group is missing')
  const [groupName, section] = found
  const group = new Group(image, groupName, section, volume.uuid)
  return group.pools()
}

class Group {
  readonly #image: Image
  readonly #name: string
  readonly #volumes: ReadonlyMap<string, LvmSection>
  /** Bytes. */
  readonly #extentSize: number
  /** Of the physical volume that is here: its name in the group, and where its extents begin. */
  readonly #here: { name: string; begin: number } | null

  constructor(image: Image, name: string, section: LvmSection, uuid: string) {
    this.#image = image
    this.#name = name
    this.#volumes = section.sections.get('logical_volumes')?.sections ?? new Map()
    this.#extentSize = number(section, 'extent_size', name) * SECTOR_SIZE
    const physical = section.sections.get('physical_volumes')?.sections ?? new Map()
    let here: { name: string; begin: number } | null = null
    for (const [pv, of] of physical) {
      if (String(of.values.get('id')).replaceAll('-', '') !== uuid) continue
      here = { name: pv, begin: number(of, 'pe_start', pv) * SECTOR_SIZE }
    }
    this.#here = here
  }

  pools(): FoundPool[] {
    const pools: FoundPool[] = []
    for (const [name, volume] of this.#volumes) {
      const [segment] = segmentsOf(volume)
      if (segment?.values.get('type') !== 'thin-pool') continue
      const notes: string[] = []
      pools.push({
        name: `${this.#name}/${name}`,
        metadata: this.#placeOf(text(segment, 'metadata', name)),
        data: this.#placeOf(text(segment, 'pool', name)),
        volumes: this.#thinOf(name, notes),
        discards: discardsOf(segment),
        dataBlockSize: number(segment, 'chunk_size', name) * SECTOR_SIZE,
        transactionId: number(segment, 'transaction_id', name),
        notes,
      })
    }
    return pools
  }

  /** The thin volumes of a pool. */
  #thinOf(pool: string, notes: string[]): Record<string, VolumeConfig> {
    const volumes: Record<string, VolumeConfig> = {}
    for (const [name, volume] of this.#volumes) {
      const [segment, another] = segmentsOf(volume)
      const { values } = segment ?? { values: new Map<string, LvmValue>() }
      if (values.get('type') !== 'thin' || values.get('thin_pool') !== pool) continue
      const why = another ? 'it has several segments' : whyNotAName(name)
      if (why !== null) {
        notes.push(`${name} is left out: ${why}`)
        continue
      }
      if (values.has('external_origin')) {
        notes.push(
          `${name}: what it has not written is in ${values.get('external_origin')}, and reads as zeros here`,
        )
      }
      const size = number(segment!, 'extent_count', name) * this.#extentSize
      const origin = values.get('origin')
      volumes[name] = {
        ...{ size, id: number(segment!, 'device_id', name) },
        ...(typeof origin === 'string' && { snapshotOf: origin }),
      }
    }
    return volumes
  }

  /** The extents of a logical volume. */
  #placeOf(name: string): Place {
    const volume = this.#volumes.get(name)
    if (volume === undefined) throw corrupt(this.#image.path, `${this.#name}/${name} is missing`)
    const extents: Extent[] = []
    for (const segment of segmentsOf(volume)) {
      const type = text(segment, 'type', name)
      const stripes = segment.values.get('stripes')
      const size = number(segment, 'extent_count', name) * this.#extentSize
      if (type !== 'striped' || !Array.isArray(stripes) || stripes.length !== 2) {
        const kind = type === 'striped' ? 'striped over several volumes' : `of type ${type}`
        throw this.#unsupported(`${name} is ${kind}; a linear one is wanted`)
      }
      const [physical, first] = stripes as [string, number]
      if (this.#here === null || physical !== this.#here.name) {
        throw this.#unsupported(
          `${name} is on another physical volume, too: all of it has to be here`,
        )
      }
      const { path: _, begin } = this.#image
      const offset = begin + this.#here.begin + first * this.#extentSize
      const last = extents.at(-1)
      if (last !== undefined && last.offset + last.size === offset) last.size += size
      else extents.push({ offset, size })
    }
    return { path: this.#image.path, extents }
  }

  #unsupported(what: string): ThinfsError {
    return new ThinfsError('NOT_SUPPORTED', `${this.#image.path}: ${this.#name}/${what}`)
  }
}

/** LVM's default is passdown. */
function discardsOf(segment: LvmSection): FoundPool['discards'] {
  const discards = segment.values.get('discards')
  return discards === 'nopassdown' || discards === 'ignore' ? discards : 'passdown'
}

/** By their place in the volume. */
function segmentsOf(volume: LvmSection): LvmSection[] {
  return [...volume.sections]
    .filter(([name]) => /^segment\d+$/.test(name))
    .map(([, segment]) => segment)
    .sort((a, b) => Number(a.values.get('start_extent')) - Number(b.values.get('start_extent')))
}

function number(section: LvmSection, key: string, of: string): number {
  const value = section.values.get(key)
  if (typeof value === 'number' && Number.isSafeInteger(value) && value >= 0) return value
  throw corrupt(`LVM's metadata, ${of}`, `${key} is ${value}, where a number is wanted`)
}

function text(section: LvmSection, key: string, of: string): string {
  const value = section.values.get(key)
  if (typeof value === 'string') return value
  throw corrupt(`LVM's metadata, ${of}`, `${key} is ${value}, where a name is wanted`)
}

const corrupt = (where: string, what: string): ThinfsError =>
  new ThinfsError('METADATA_CORRUPT', `${where}: ${what}`)
