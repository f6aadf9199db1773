import { ThinfsError } from '../base/index.js'
import { formatSize, type PoolPlace } from '../config/index.js'
import type { DaemonClient } from '../control/index.js'
import type { Recording } from '../volumes/index.js'
import { command, type Output, POOL_HELP, print } from './command.js'
import { mustBeWanted, YES_OPTION } from './confirm.js'
import { placeOfPool, withDaemonOf } from './pool.js'
import { baseOf, openRecording, recordingOf, withSnapshot } from './scratch.js'
import { flushMaps } from './snapshot.js'

interface Options extends Output {
  stop?: true
  mark?: string
  remove?: true
  export?: string
  yes?: true
}

export const record = command(
  'record',
  'Record what changes a volume of a mounted pool, from a snapshot on: for thinfs replay.',
  'thinfs record /srv/pool web --mark "mkfs done"',
)
  .argument('<POOL>', POOL_HELP)
  .argument('[VOLUME]', 'to record; without it, prints the recordings there are')
  .option('--mark <name>', 'put a mark into the recording')
  .option('--stop', 'end the recording; it is kept')
  .option('--remove', 'remove a recording that has ended, and its snapshot; asks')
  .option(...YES_OPTION)
  .option('--export <file>', 'write it to a new file, as dm-log-writes does, for replay-log')
  .action(async (pool: string, name: string | undefined, options: Options) => {
    const { mark, stop, remove, export: file } = options
    const nrActs = [mark, stop, remove, file].filter(option => option !== undefined).length
    if (nrActs > 1) {
      throw new ThinfsError('BAD_ARGUMENT', 'one of --mark, --stop, --remove and --export')
    }
    if (nrActs > 0 && name === undefined) {
      const detail = '--mark, --stop, --remove and --export take the name of a volume'
      throw new ThinfsError('BAD_ARGUMENT', detail)
    }
    const place = placeOfPool(pool)
    await withDaemonOf(place, async daemon => {
      if (name === undefined) {
        const recordings = await daemon.recordings()
        print(options, recordings, recordings.map(describe).join('\n'))
      } else if (mark !== undefined) print(options, await daemon.mark({ name, mark }), '')
      else if (remove) {
        const question = async (): Promise<string> => `Remove the recording of ${name}?`
        await mustBeWanted('removing a recording', { yes: options.yes, question })
        await daemon.removeRecording({ name })
        print(options, { removed: name }, '')
      } else if (file !== undefined) {
        const entries = await exportTo(file, daemon, place, name)
        print(options, { file, entries }, `${file}: ${entries} entries`)
      } else {
        const recording = stop
          ? await daemon.stopRecording({ name })
          : await start(daemon, place, name)
        print(options, recording, describe(recording))
      }
    })
  })

async function start(daemon: DaemonClient, place: PoolPlace, name: string): Promise<Recording> {
  await flushMaps(daemon, place, name)
  return await daemon.record({ name })
}

async function exportTo(
  file: string,
  daemon: DaemonClient,
  place: PoolPlace,
  name: string,
): Promise<number> {
  const recording = await recordingOf(daemon, name)
  const reader = await openRecording(place, recording)
  try {
    const { apply, exportLogWrites } = await import('../replay/index.js')
    const names = { origin: baseOf(recording), name: `${name}@export-${process.pid}` }
    return await withSnapshot(daemon, place, names, async content => {
      let done = 0
      return exportLogWrites(reader, file, (entries, offset, buffer) => {
        apply(reader, done, entries, content)
        done = entries
        content.read(buffer, offset)
      })
    })
  } finally {
    reader.close()
  }
}

function describe({ volume, base, entries, bytes, log, ended }: Recording): string {
  const state = ended === null ? 'recording' : `ended: ${ended}`
  const from = base === null ? 'its snapshot is gone' : `from ${base}`
  return `${volume}: ${entries} entries, ${formatSize(bytes)}, ${from}, ${log}; ${state}`
}
