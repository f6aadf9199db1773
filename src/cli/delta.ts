import { SECTOR_SIZE, ThinfsError } from '../base/index.js'
import { formatSize } from '../config/index.js'
import type { Change } from '../streams/index.js'
import type { HeldVolume } from '../volumes/index.js'
import { type Output, poolCommand } from './command.js'
import { type HeldVolumes, withHeld } from './held.js'

interface Options extends Output {
  format: string
}

export const FORMATS = ['table', 'xml']

export const delta = poolCommand(
  'delta',
  'List the blocks by which two volumes differ, as thin_delta does. No data is read.',
  'thinfs delta /srv/pool web@monday web@tuesday',
)
  .argument('<LEFT>', 'a volume, or the number of its device')
  .argument('<RIGHT>', 'another one')
  .option('--format <format>', "table; or xml as thin_delta's, with what is the same", 'table')
  .addHelpText(
    'after',
    `
A row of the table is a run of blocks: those that LEFT alone maps, those that RIGHT alone maps, and
those that they map to different blocks of the pool. Of a mounted pool that is as of one moment.`,
  )
  .action(async (pool: string, left: string, right: string, options: Options) => {
    const { json, format } = options
    if (!FORMATS.includes(format) || (json && format === 'xml')) {
      const what = json ? '--json is a format of its own' : `${FORMATS.join(' or ')} is possible`
      throw new ThinfsError('BAD_ARGUMENT', `--format ${format}: ${what}`)
    }
    await withHeld(pool, 'read', { names: [left, right] }, async held => {
      const { changesBetween, deltaXml } = await import('../streams/index.js')
      const [one, other] = held.volumes as [HeldVolume, HeldVolume]
      const changes = (all: boolean): Iterable<Change> =>
        changesBetween(held.metadata, [one.root, other.root], all)
      if (json) return await held.print(jsonOf(held, changes(false)))
      if (format === 'table') return await held.print(tableOf(held, changes(false)))
      const { time, transactionId, dataBlockSize, dataBlocks } = held
      const head = { time, transactionId, dataBlocks, dataBlockSize: dataBlockSize / SECTOR_SIZE }
      const devices = { left: one.devId, right: other.devId }
      await held.print(deltaXml({ ...head, ...devices }, changes(true)))
    })
  })

const ROW = (kind: string, begin: number | string, length: number | string): string =>
  `${kind.padEnd(12)}${String(begin).padStart(14)}${String(length).padStart(14)}\n`

function* tableOf({ dataBlockSize }: HeldVolumes, changes: Iterable<Change>): Generator<string> {
  yield ROW('CHANGE', 'BLOCK', 'LENGTH')
  let blocks = 0
  for (const { kind, begin, length } of changes) {
    yield ROW(kind, begin, length)
    blocks += length
  }
  yield `${blocks} blocks of ${formatSize(dataBlockSize)} differ\n`
}

/** As JSON.stringify has it, a change at a time: offset and length in bytes. */
function* jsonOf(held: HeldVolumes, changes: Iterable<Change>): Generator<string> {
  const { dataBlockSize } = held
  const [left, right] = held.volumes.map(({ name, devId, size }) => ({ name, devId, size }))
  const head = JSON.stringify({ left, right, dataBlockSize }, null, 2)
  yield `${head.slice(0, -'\n}'.length)},\n  "changes": [`
  let separator = '\n'
  for (const { kind, begin, length } of changes) {
    const change = { kind, offset: begin * dataBlockSize, length: length * dataBlockSize }
    yield `${separator}    ${JSON.stringify(change)}`
    separator = ',\n'
  }
  yield '\n  ]\n}\n'
}
