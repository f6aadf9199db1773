/**
 * External origins: files that volumes show where they map nothing. They are only read, each is
 * open once for all volumes on it, and nobody may write to it as long as it is: what it holds is
 * content of these volumes.
 */
import { type BigIntStats, statSync } from 'node:fs'
import { isAbsolute, join } from 'node:path'
import { bytes, SECTOR_SIZE, ThinfsError } from '../base/index.js'
import { type Origin, WithOrigin } from '../pool/index.js'
import { FileStore } from '../storage/index.js'
import type { Volume } from './volume.js'
import type { ExternalOrigin, VolumeEntry } from './volume-table.js'

/** The folder that the paths of origins count from: for people, and for system calls. */
export interface OriginPlace {
  path: string
  held: string
  /** The pool's mount point: the process that serves it would wait for itself there. */
  mountPoint?: string | undefined
  /** The user whose files they have to be, where the pool is another user's copy. */
  ofUser?: number | undefined
}

export class ExternalOrigins {
  readonly #place: OriginPlace
  readonly #open = new Map<string, { id: string; file: FileStore }>()
  /** Files that others of the same size and time took the place of. */
  readonly #replaced: FileStore[] = []

  constructor(place: OriginPlace) {
    this.#place = place
  }

  /**
   * The facts that volumes.json keeps of a file that is to be an origin.
   * @param path absolute, or from the pool's folder
   * @throws BAD_ARGUMENT for what is no file, or empty; POOL_IN_USE when somebody writes to it;
   *   NOT_TRUSTED, IO_ERROR
   */
  describe(path: string): ExternalOrigin {
    const stat = statSync(this.#heldPath(path), { throwIfNoEntry: false, bigint: true })
    const shown = this.#shownPath(path)
    if (stat === undefined || !stat.isFile() || stat.size === 0n) {
      const what = stat === undefined ? 'no such file' : 'it has to be a file that is not empty'
      throw new ThinfsError('BAD_ARGUMENT', `external origin ${shown}: ${what}`)
    }
    this.#file(path, stat)
    const size = Number(stat.size)
    // A file in the pool's folder goes with that folder.
    const isWithin = path.startsWith(`${this.#place.path}/`)
    const kept = isWithin ? path.slice(this.#place.path.length + 1) : path
    return { path: kept, size, modified: String(stat.mtimeNs), shown: size }
  }

  /** The device that takes the requests for a volume with an external origin. */
  deviceOf(volume: Volume): WithOrigin {
    return new WithOrigin(volume.device, new FileOrigin(volume, this))
  }

  /**
   * The file of an origin, which has to be the one that the volume was made on.
   * @throws ORIGIN_CHANGED, POOL_IN_USE, NOT_TRUSTED, IO_ERROR
   */
  fileOf({ name, external_origin: origin }: VolumeEntry): FileStore {
    const { path, size, modified } = origin!
    const of = `${name}: its external origin ${this.#shownPath(path)}`
    const stat = statSync(this.#heldPath(path), { throwIfNoEntry: false, bigint: true })
    if (stat === undefined) {
      throw new ThinfsError('ORIGIN_CHANGED', `${of} is not there: put the file back`)
    }
    if (!stat.isFile() || Number(stat.size) !== size || String(stat.mtimeNs) !== modified) {
      const found = `${stat.size} bytes of ${timeOf(stat.mtimeNs)}`
      const wanted = `${size} bytes of ${timeOf(BigInt(modified))}`
      const cure = `put that one back, with cp -p; or, where the bytes are the same: touch -d @${secondsOf(modified)}`
      throw new ThinfsError('ORIGIN_CHANGED', `${of} has ${found}, not ${wanted}: ${cure}`)
    }
    return this.#file(path, stat)
  }

  /** A sentence for each file that a volume lacks: of the first volume that does. */
  whatIsOdd(volumes: Iterable<Volume>): string[] {
    const found = new Map<string, string | null>()
    for (const { entry } of volumes) {
      const key = JSON.stringify({ ...entry.external_origin, shown: 0 })
      if (entry.external_origin === undefined || found.has(key)) continue
      try {
        this.fileOf(entry)
        found.set(key, null)
      } catch (err) {
        found.set(key, (err as Error).message)
      }
    }
    return [...found.values()].filter(message => message !== null)
  }

  close(): void {
    for (const { file } of this.#open.values()) file.close()
    for (const file of this.#replaced) file.close()
    this.#open.clear()
    this.#replaced.length = 0
  }

  #file(path: string, { dev, ino }: BigIntStats): FileStore {
    const id = `${dev}-${ino}`
    const open = this.#open.get(path)
    if (open?.id === id) return open.file
    const { ofUser } = this.#place
    const file = FileStore.open(this.#heldPath(path), {
      readOnly: true,
      ...(ofUser !== undefined && { ofUser }),
    })
    if (!file.lockAsImage()) {
      file.close()
      const what = `external origin ${this.#shownPath(path)}: another process writes to it`
      throw new ThinfsError('POOL_IN_USE', what)
    }
    this.#open.set(path, { id, file })
    // Reads of the one before may be under way.
    if (open !== undefined) this.#replaced.push(open.file)
    return file
  }

  /** @throws ORIGIN_CHANGED for a path that the pool's own mount hides */
  #heldPath(path: string): string {
    const { mountPoint, held } = this.#place
    const shown = this.#shownPath(path)
    if (mountPoint !== undefined && `${shown}/`.startsWith(`${mountPoint}/`)) {
      const what = `external origin ${shown}: hidden by the mount at ${mountPoint}`
      throw new ThinfsError('ORIGIN_CHANGED', `${what}: mount the pool elsewhere, or move the file`)
    }
    return isAbsolute(path) ? path : join(held, path)
  }

  #shownPath(path: string): string {
    return isAbsolute(path) ? path : join(this.#place.path, path)
  }
}

/** The size of a volume that shows all of an origin: whole sectors. */
export const sizeOn = ({ size }: ExternalOrigin): number =>
  Math.ceil(size / SECTOR_SIZE) * SECTOR_SIZE

/** The part of the file that a volume shows. Opened by the first request that needs it. */
class FileOrigin implements Origin {
  readonly #volume: Volume
  readonly #origins: ExternalOrigins

  constructor(volume: Volume, origins: ExternalOrigins) {
    this.#volume = volume
    this.#origins = origins
  }

  get size(): number {
    return this.#volume.entry.external_origin!.shown
  }

  read(offset: number, size: number, buffer: Uint8Array, at: number): boolean {
    return this.#file.readNow(buffer, at, size, bytes(offset))
  }

  readLater(offset: number, size: number, buffer: Uint8Array, at: number): Promise<void> {
    return this.#file.readLater(buffer, at, size, bytes(offset))
  }

  nextData(offset: number): number {
    return this.#file.nextData(bytes(offset))
  }

  nextHole(offset: number): number {
    return this.#file.nextHole(bytes(offset))
  }

  /** A file that is no longer the one is noticed by each read. */
  get #file(): FileStore {
    return this.#origins.fileOf(this.#volume.entry)
  }
}

/** ISO 8601, of nanoseconds since 1970. */
const timeOf = (ns: bigint): string => new Date(Number(ns / 1_000_000n)).toISOString()

/** As touch(1) takes it. */
function secondsOf(ns: string): string {
  const padded = ns.padStart(10, '0')
  return `${padded.slice(0, -9)}.${padded.slice(-9)}`
}
