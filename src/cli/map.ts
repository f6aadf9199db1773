import { formatSize } from '../config/index.js'
import type { MappedRun } from '../streams/index.js'
import type { HeldVolume } from '../volumes/index.js'
import { type Output, poolCommand } from './command.js'
import { withHeld } from './held.js'

export const map = poolCommand(
  'map',
  'List where the blocks of a volume are in the data file, as filefrag -v does for a file.',
  'thinfs map /srv/pool web',
)
  .argument('<VOLUME>', 'or the number of its device')
  .addHelpText(
    'after',
    `
A row is a run of blocks that follow each other here and there: the first block of the volume, that of
the data file, how many, and the snapshot clock when they were mapped. Of a mounted pool that is as of
one moment. With --json in bytes.`,
  )
  .action(async (pool: string, name: string, { json }: Output) => {
    await withHeld(pool, 'read', { names: [name] }, async held => {
      const { mappedRuns } = await import('../streams/index.js')
      const [volume] = held.volumes as [HeldVolume]
      const runs = mappedRuns(held.metadata, volume.root)
      const text = json
        ? jsonOf(volume, held.dataBlockSize, runs)
        : tableOf(held.dataBlockSize, runs)
      await held.print(text)
    })
  })

const row = (...cells: (string | number)[]): string =>
  `${cells.map(cell => String(cell).padStart(14)).join('')}\n`

function* tableOf(blockSize: number, runs: Iterable<MappedRun>): Generator<string> {
  yield row('BLOCK', 'DATA BLOCK', 'LENGTH', 'TIME')
  let blocks = 0
  let count = 0
  for (const { begin, dataBegin, length, time } of runs) {
    yield row(begin, dataBegin, length, time)
    blocks += length
    count++
  }
  yield `${blocks} blocks of ${formatSize(blockSize)} mapped, in ${count} runs\n`
}

/** A run at a time; in bytes. */
function* jsonOf(
  { name, devId, size }: HeldVolume,
  dataBlockSize: number,
  runs: Iterable<MappedRun>,
): Generator<string> {
  const head = JSON.stringify({ name, devId, size, dataBlockSize }, null, 2)
  yield `${head.slice(0, -'\n}'.length)},\n  "mappings": [`
  let separator = '\n'
  for (const { begin, dataBegin, length, time } of runs) {
    const [offset, dataOffset] = [begin * dataBlockSize, dataBegin * dataBlockSize]
    const run = { offset, dataOffset, length: length * dataBlockSize, time }
    yield `${separator}    ${JSON.stringify(run)}`
    separator = ',\n'
  }
  yield '\n  ]\n}\n'
}
