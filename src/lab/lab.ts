/**
 * The crash lab of a mounted pool: what stands before the devices of volumes that are recorded, or
 * into which something is injected.
 *
 * A volume that nothing is done to has nothing before its device. Faults and recordings last as
 * long as the mount: the next engine finds them in lab.json; for the next mount nothing is
 * injected, and recordings have ended.
 */
import { ThinfsError, volumeMissing } from '../base/index.js'
import { exactSize } from '../config/index.js'
import { AtomicFile, type HeldFolder } from '../storage/index.js'
import type {
  Injection,
  LabAdmin,
  PoolStatus,
  Recording,
  Volume,
  Volumes,
} from '../volumes/index.js'
import { type Faults, isNone, noFaults } from './injector.js'
import {
  encodeState,
  type LabState,
  noState,
  readState,
  type StoredInjection,
} from './lab-state.js'
import { LabVolume } from './lab-volume.js'
import { Recordings } from './recordings.js'

/** In the folder of pool.yaml. */
const STATE_FILE = 'lab.json'
/** Milliseconds. More than a minute is a request that the kernel complains of. */
const MAX_LATENCY = 60_000
/** Each request is held against each range. */
const MAX_RANGES = 1000

export interface LabOptions {
  volumes: Volumes
  /** The pool's. */
  folder: HeldFolder
  /** The mount of an engine that died goes on. */
  takesOver: boolean
  /** Nothing is written. */
  readOnly: boolean
  onWarning: (message: string) => void
  onChange: (what: string, volume: string) => void
  /** Makes the kernel forget what it has cached of a volume's content. */
  invalidate: (devId: number) => Promise<void>
}

export class Lab implements LabAdmin {
  readonly #options: LabOptions
  readonly #file: AtomicFile
  readonly #volumes: Volumes
  readonly #labs = new Map<Volume, LabVolume>()
  readonly #recordings: Recordings
  #saved: Promise<void> = Promise.resolve()

  private constructor(options: LabOptions) {
    this.#options = options
    this.#volumes = options.volumes
    this.#file = new AtomicFile(...options.folder.file(STATE_FILE))
    this.#recordings = new Recordings({
      ...options,
      labOf: volume => this.#labOf(volume),
      save: () => this.#save(),
    })
  }

  /** Puts back in place what an engine before this one had, where its mount goes on. */
  static async open(options: LabOptions): Promise<Lab> {
    const lab = new Lab(options)
    const { injections, recordings } = lab.#load()
    let changed: boolean
    if (options.takesOver) {
      for (const injection of injections) lab.#takeOver(injection)
      changed = lab.#recordings.takeOver(recordings)
    } else {
      changed = (await lab.#recordings.endAll(recordings)) || injections.length > 0
    }
    if (changed && !options.readOnly) await lab.#save()
    return lab
  }

  async inject(request: Parameters<LabAdmin['inject']>[0]): Promise<Injection> {
    const volume = this.#must(request.name)
    const { clear = false, ignoreFlushes = false, latencyMs } = request
    const readErrors = rangesOf(request.readErrors ?? [], volume)
    const writeErrors = rangesOf(request.writeErrors ?? [], volume)
    if (latencyMs !== undefined && (latencyMs < 0 || latencyMs > MAX_LATENCY)) {
      const detail = `a latency of ${latencyMs} ms: 0 to ${MAX_LATENCY} is allowed`
      throw new ThinfsError('BAD_ARGUMENT', detail)
    }
    const before = this.#labs.get(volume)?.injector.faults ?? noFaults()
    const base = clear ? noFaults() : before
    const faults: Faults = {
      readErrors: [...base.readErrors, ...readErrors],
      writeErrors: [...base.writeErrors, ...writeErrors],
      ignoreFlushes: base.ignoreFlushes || ignoreFlushes,
      latencyMs: latencyMs ?? base.latencyMs,
    }
    if (faults.readErrors.length + faults.writeErrors.length > MAX_RANGES) {
      throw new ThinfsError('BAD_ARGUMENT', `${volume.name}: more than ${MAX_RANGES} ranges`)
    }
    const adds = readErrors.length + writeErrors.length > 0 || ignoreFlushes
    if (!clear && !adds && latencyMs === undefined) return injectionOf(volume, before)
    this.#mustBeWritable()
    this.#inject(volume, faults)
    await this.#save()
    // A read must fail though the kernel had the bytes.
    await this.#options.invalidate(volume.devId)
    this.#options.onChange(describe(faults), volume.name)
    return injectionOf(volume, faults)
  }

  async record({ name }: { name: string }, signal?: AbortSignal): Promise<Recording> {
    this.#mustBeWritable()
    return await this.#recordings.begin(this.#must(name), signal)
  }

  mark({ name, mark }: { name: string; mark: string }): Promise<Recording> {
    return this.#recordings.mark(name, mark)
  }

  stopRecording({ name }: { name: string }): Promise<Recording> {
    return this.#recordings.stop(name)
  }

  async removeRecording({ name }: { name: string }): Promise<void> {
    this.#mustBeWritable()
    await this.#recordings.remove(name)
  }

  async recordings(): Promise<Recording[]> {
    return this.#recordings.list()
  }

  /**
   * The pool's, in whose place it stands, with a warning for each volume that something is done to.
   */
  async status(): Promise<PoolStatus> {
    const status = await this.#volumes.status()
    const warnings = [...status.warnings]
    for (const [volume, { injector }] of this.#labs) {
      if (!isNone(injector.faults)) warnings.push(`${volume.name}: ${describe(injector.faults)}`)
    }
    for (const { volume, ended, bytes } of this.#recordings.list()) {
      if (ended === null) warnings.push(`${volume}: it is being recorded, ${bytes} bytes so far`)
    }
    return { ...status, warnings }
  }

  // --- inside ---

  #load(): LabState {
    try {
      return readState(this.#file, this.#uuid)
    } catch (err) {
      const what = 'nothing is injected or recorded'
      this.#options.onWarning(`${(err as Error).message}; ${what}`)
      return noState(this.#uuid)
    }
  }

  #takeOver(injection: StoredInjection): void {
    const volume = this.#volumes.byDevId(injection.dev_id)
    if (volume?.generation === injection.generation) this.#inject(volume, faultsOf(injection))
  }

  #inject(volume: Volume, faults: Faults): void {
    const lab = this.#labOf(volume)
    lab.injector.faults = faults
    lab.settle()
  }

  #labOf(volume: Volume): LabVolume {
    let lab = this.#labs.get(volume)
    if (lab === undefined) {
      lab = new LabVolume(volume, this.#volumes)
      this.#labs.set(volume, lab)
    }
    return lab
  }

  /** Resolves when the file has what is so now. */
  #save(): Promise<void> {
    const saved = this.#saved.then(() => this.#file.replace(encodeState(this.#state())))
    this.#saved = saved.catch(() => {})
    return saved
  }

  #state(): LabState {
    const injections: StoredInjection[] = []
    for (const [volume, { injector }] of this.#labs) {
      const isThere = this.#volumes.byDevId(volume.devId) === volume
      if (!isThere) this.#labs.delete(volume)
      else if (!isNone(injector.faults)) injections.push(stored(volume, injector.faults))
    }
    return { version: 1, pool: this.#uuid, injections, recordings: this.#recordings.stored }
  }

  get #uuid(): string | null {
    return this.#volumes.pool.metadata.uuid
  }

  #must(name: string): Volume {
    const volume = this.#volumes.find(name)
    if (volume) return volume
    throw volumeMissing(name)
  }

  #mustBeWritable(): void {
    if (!this.#options.readOnly) return
    throw new ThinfsError('POOL_READ_ONLY', 'the pool is mounted read-only')
  }
}

/** @throws BAD_ARGUMENT for what is no range of the volume */
function rangesOf(numbers: readonly number[], { name, device }: Volume): [number, number][] {
  const ranges: [number, number][] = []
  for (let i = 0; i < numbers.length; i += 2) {
    const offset = numbers[i]!
    const length = numbers[i + 1] ?? 0
    if (offset < 0 || length <= 0 || offset + length > device.size) {
      const range = `${exactSize(offset)}+${exactSize(length)}`
      const wanted = `OFFSET+LENGTH within the volume, which has ${exactSize(device.size)}`
      const detail = `${name}: ${range} is no range of it: ${wanted}`
      throw new ThinfsError('BAD_ARGUMENT', detail)
    }
    ranges.push([offset, length])
  }
  return ranges
}

const injectionOf = ({ name }: Volume, faults: Faults): Injection => ({ name, ...faults })

const stored = ({ devId, generation }: Volume, faults: Faults): StoredInjection => ({
  dev_id: devId,
  generation,
  read_errors: faults.readErrors,
  write_errors: faults.writeErrors,
  ignore_flushes: faults.ignoreFlushes,
  latency_ms: faults.latencyMs,
})

const faultsOf = (injection: StoredInjection): Faults => ({
  readErrors: injection.read_errors,
  writeErrors: injection.write_errors,
  ignoreFlushes: injection.ignore_flushes,
  latencyMs: injection.latency_ms,
})

/** The injected faults, for the log. */
function describe(faults: Faults): string {
  const what = [
    ...(faults.readErrors.length > 0 ? ['read errors'] : []),
    ...(faults.writeErrors.length > 0 ? ['write errors'] : []),
    ...(faults.ignoreFlushes ? ['flushes are ignored'] : []),
    ...(faults.latencyMs > 0 ? [`latency of ${faults.latencyMs} ms`] : []),
  ]
  return `injected: ${what.join(', ') || 'nothing'}`
}
