/**
 * The recordings of a pool: each has a snapshot that it begins with, a log of what came then, and
 * the bytes that came.
 *
 * One goes on until it is stopped, or the pool unmounted, or its log cannot be written; the engine
 * may be another meanwhile. The reason for its end is saved before any request that it lacks is
 * acknowledged.
 */
import { statSync } from 'node:fs'
import {
  noRecording,
  ThinfsError,
  unlessAborted,
  uselessRecording,
  volumeMissing,
} from '../base/index.js'
import { MAX_MARK, RECORD_ENTRY, recordingFiles } from '../replay/index.js'
import { bootId, type HeldFolder } from '../storage/index.js'
import type { Recording, Volume, Volumes } from '../volumes/index.js'
import type { StoredRecording } from './lab-state.js'
import type { LabVolume } from './lab-volume.js'
import { RecordWriter } from './record-writer.js'

/** Why nobody may remove or resize a volume. */
const RECORDED = 'it is being recorded; thinfs record --stop ends that'
const isBaseOf = (name: string): string =>
  `the recording of ${name} begins with it; thinfs record --remove gives both up`

export interface RecordingsParts {
  volumes: Volumes
  folder: HeldFolder
  labOf(volume: Volume): LabVolume
  /** Resolves when what `stored` gives is on the disk. */
  save(): Promise<void>
  onChange(what: string, volume: string): void
  onWarning(message: string): void
}

interface Kept {
  stored: StoredRecording
  /** Null once it has ended. */
  writer: RecordWriter | null
}

export class Recordings {
  readonly #parts: RecordingsParts
  #kept: Kept[] = []

  constructor(parts: RecordingsParts) {
    this.#parts = parts
  }

  /** Their part of the state file. */
  get stored(): StoredRecording[] {
    return this.#kept.map(({ stored }) => stored)
  }

  /**
   * Goes on with those of an engine before this one, whose mount this is.
   * @returns whether one ended
   */
  takeOver(stored: readonly StoredRecording[]): boolean {
    let ended = false
    for (const recording of stored) {
      const kept: Kept = { stored: recording, writer: null }
      this.#keep(kept)
      if (recording.ended !== null) continue
      const volume = this.#volumeOf(recording)
      try {
        if (volume === null) throw new Error('the volume is gone')
        const writer = RecordWriter.resume(this.#parts.folder, recording.id)
        volume.heldFor = RECORDED
        this.#start(kept, volume, writer)
      } catch (err) {
        recording.ended = `the next engine could not go on: ${(err as Error).message}`
        this.#tellEnd(recording)
        ended = true
      }
    }
    return ended
  }

  /** Takes over those of an earlier mount, all of which have ended. @returns whether one had not */
  async endAll(stored: readonly StoredRecording[]): Promise<boolean> {
    let ended = false
    for (const recording of stored) {
      this.#keep({ stored: recording, writer: null })
      if (recording.ended !== null) continue
      recording.lost = recording.boot !== bootId()
      recording.ended = recording.lost
        ? 'the machine went down before it was stopped: what it has is not all, and not in order'
        : 'the pool was unmounted'
      if (!recording.lost) await this.#sync(recording)
      this.#tellEnd(recording)
      ended = true
    }
    return ended
  }

  /** @param signal ends the wait for requests under way with its reason */
  async begin(volume: Volume, signal?: AbortSignal): Promise<Recording> {
    const before = this.#find(volume.name)
    if (before !== undefined) {
      const how = `thinfs record --${before.writer === null ? 'remove removes' : 'stop ends'} it`
      throw new ThinfsError('VOLUME_BUSY', `${volume.name}: it has a recording; ${how}`)
    }
    if (volume.heldFor !== null) {
      throw new ThinfsError('VOLUME_BUSY', `${volume.name}: ${volume.heldFor}`)
    }
    const id = Math.max(0, ...this.#kept.map(({ stored }) => stored.id)) + 1
    const stored: StoredRecording = {
      ...{ id, dev_id: volume.devId, generation: volume.generation, volume: volume.name },
      ...{ base: { dev_id: 0, generation: 0 }, boot: bootId() },
      ...{ started: Date.now() / 1000, ended: null, lost: false },
    }
    const kept: Kept = { stored, writer: null }
    const base = this.#freeName(volume.name)
    volume.heldFor = RECORDED
    try {
      await this.#take(kept, volume, base, signal)
      await this.#parts.save()
    } catch (err) {
      await this.#undo(kept, volume, base)
      throw err
    }
    this.#parts.onChange(`is recorded, from ${base}`, volume.name)
    return this.#infoOf(kept)
  }

  /** Takes the snapshot, and begins to record with the first request that is not in it. */
  async #take(kept: Kept, volume: Volume, base: string, signal?: AbortSignal): Promise<void> {
    const { volumes, folder, labOf } = this.#parts
    labOf(volume).setRecords(true)
    // Requests under way do not pass the recorder.
    const underWay = [volume.resized, ...volume.underWay]
    await unlessAborted(Promise.allSettled(underWay), signal)
    const writer = RecordWriter.create(folder, kept.stored.id)
    const start = (): void => this.#start(kept, volume, writer)
    let devId: number
    try {
      devId = (await volumes.snapshotAnd({ origin: volume.name, name: base }, start)).devId
    } catch (err) {
      if (kept.writer === null) writer.close()
      throw err
    }
    kept.stored.base = { dev_id: devId, generation: volumes.byDevId(devId)!.generation }
    this.#keep(kept)
  }

  async #undo(kept: Kept, volume: Volume, base: string): Promise<void> {
    const { volumes, folder, labOf } = this.#parts
    labOf(volume).recorder.stop()
    labOf(volume).setRecords(false)
    volume.heldFor = null
    kept.writer?.close()
    kept.writer = null
    RecordWriter.remove(folder, kept.stored.id)
    if (!this.#kept.includes(kept)) return
    this.#kept = this.#kept.filter(other => other !== kept)
    const taken = this.#baseOf(kept.stored)
    if (taken !== null) taken.heldFor = null
    await volumes.remove({ names: [base] }).catch(() => {})
  }

  async mark(name: string, mark: string): Promise<Recording> {
    const kept = this.#must(name)
    if (mark === '' || Buffer.byteLength(mark) > MAX_MARK || /\p{Cc}/u.test(mark)) {
      const detail = `${JSON.stringify(mark)} is no mark: 1 to ${MAX_MARK} bytes, no control characters`
      throw new ThinfsError('BAD_ARGUMENT', detail)
    }
    if (kept.writer !== null) await this.#labOf(kept)?.recorder.mark(mark)
    if (kept.writer !== null) return this.#infoOf(kept)
    throw uselessRecording(name, `the recording has ended: ${kept.stored.ended}`)
  }

  async stop(name: string): Promise<Recording> {
    const kept = this.#must(name)
    if (kept.writer !== null) await this.#end(kept, 'it was stopped')
    return this.#infoOf(kept)
  }

  async remove(name: string): Promise<void> {
    const kept = this.#must(name)
    if (kept.writer !== null) {
      throw new ThinfsError('VOLUME_BUSY', `${name}: ${RECORDED}`)
    }
    const base = this.#baseOf(kept.stored)
    if (base !== null) {
      base.heldFor = null
      try {
        await this.#parts.volumes.remove({ names: [base.name] })
      } catch (err) {
        this.#holdBase(kept)
        throw err
      }
    }
    this.#kept = this.#kept.filter(other => other !== kept)
    await this.#parts.save()
    RecordWriter.remove(this.#parts.folder, kept.stored.id)
  }

  list(): Recording[] {
    return this.#kept.map(kept => this.#infoOf(kept))
  }

  // --- inside ---

  #start(kept: Kept, volume: Volume, writer: RecordWriter): void {
    const lab = this.#parts.labOf(volume)
    kept.writer = writer
    lab.setRecords(true)
    lab.recorder.start(writer, why => this.#end(kept, why))
  }

  /** Does not fail: a recording that has ended early is told, and the volume goes on. */
  async #end(kept: Kept, why: string): Promise<void> {
    const { writer, stored } = kept
    const lab = this.#labOf(kept)
    if (writer === null) return
    lab?.recorder.stop()
    kept.writer = null
    stored.ended = why
    try {
      await writer.sync()
    } catch (err) {
      stored.ended = `${why}, and cannot be made durable: ${(err as Error).message}`
    }
    writer.close()
    try {
      await this.#parts.save()
    } catch (err) {
      this.#parts.onWarning(`the end of a recording cannot be saved: ${(err as Error).message}`)
    }
    // Not before it is saved: another engine would go on with it, without what came meanwhile.
    if (lab !== null) {
      lab.volume.heldFor = null
      lab.setRecords(false)
    }
    this.#tellEnd(stored)
  }

  #tellEnd({ volume, ended }: StoredRecording): void {
    this.#parts.onChange(`the recording has ended: ${ended}`, volume)
  }

  async #sync({ id, volume }: StoredRecording): Promise<void> {
    try {
      const writer = RecordWriter.resume(this.#parts.folder, id)
      await writer.sync()
      writer.close()
    } catch (err) {
      this.#parts.onWarning(`the recording of ${volume}: ${(err as Error).message}`)
    }
  }

  #keep(kept: Kept): void {
    this.#kept.push(kept)
    this.#holdBase(kept)
  }

  #holdBase({ stored }: Kept): void {
    const base = this.#baseOf(stored)
    if (base === null) return
    base.heldFor = isBaseOf(stored.volume)
    this.#parts.labOf(base).setReadOnly(true)
  }

  #labOf({ stored }: Kept): LabVolume | null {
    const volume = this.#volumeOf(stored)
    return volume === null ? null : this.#parts.labOf(volume)
  }

  #volumeOf({ dev_id, generation }: { dev_id: number; generation: number }): Volume | null {
    const volume = this.#parts.volumes.byDevId(dev_id)
    return volume?.generation === generation && !volume.entry.removed ? volume : null
  }

  #baseOf({ base }: StoredRecording): Volume | null {
    return this.#volumeOf(base)
  }

  /** By the name that the volume has; one that is gone by the last that it had. */
  #find(name: string): Kept | undefined {
    return this.#kept.find(({ stored }) => this.#nameOf(stored) === name)
  }

  #nameOf(stored: StoredRecording): string {
    return this.#volumeOf(stored)?.name ?? stored.volume
  }

  #must(name: string): Kept {
    const found = this.#find(name)
    if (found !== undefined) return found
    throw this.#parts.volumes.find(name) === undefined ? volumeMissing(name) : noRecording(name)
  }

  /** NAME@record, or the first of NAME@record-2, … that no volume has. */
  #freeName(name: string): string {
    for (let i = 1; ; i++) {
      const free = i === 1 ? `${name}@record` : `${name}@record-${i}`
      if (this.#parts.volumes.find(free) === undefined) return free
    }
  }

  #infoOf({ stored }: Kept): Recording {
    const { id, started, ended, lost } = stored
    const { log, data } = recordingFiles(id)
    const sizeOf = (name: string): number =>
      statSync(this.#parts.folder.file(name)[1], { throwIfNoEntry: false })?.size ?? 0
    const logSize = sizeOf(log)
    return {
      volume: this.#nameOf(stored),
      base: this.#baseOf(stored)?.name ?? null,
      entries: Math.floor(logSize / RECORD_ENTRY.size),
      bytes: logSize + sizeOf(data),
      ...{ log, data, started, ended, lost },
    }
  }
}
