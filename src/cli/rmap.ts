import { ThinfsError } from '../base/index.js'
import { type Output, poolCommand, print } from './command.js'
import { withMetadata } from './metadata-file.js'

interface Options extends Output {
  metadataSnap?: boolean
}

export const rmap = poolCommand(
  'rmap',
  'Tell which devices map data blocks, as thin_rmap does: all mappings are read.',
  'thinfs rmap /srv/pool 5..45',
)
  .argument('<BEGIN..END>', 'data blocks, the last one not included', rangeOf)
  .option('-m, --metadata-snap', 'in the metadata snapshot, of a mounted pool too')
  .addHelpText(
    'after',
    `
A data block begins in the data file at its number times data_block_size. thinfs list has the volumes
of the devices.`,
  )
  .action(async (pool: string, range: Range, { metadataSnap = false, ...output }: Options) => {
    const { reverseMap } = await import('../streams/index.js')
    await withMetadata(pool, metadataSnap, async (metadata, held) => {
      const runs = reverseMap(metadata, held, range)
      const lines = runs.map(({ begin, end, devId, thinBegin }) => {
        return `data ${begin}..${end} -> thin(${devId}) ${thinBegin}..${thinBegin + end - begin}`
      })
      print(output, runs, lines.join('\n'))
    })
  })

interface Range {
  begin: number
  end: number
}

function rangeOf(text: string): Range {
  const [, begin, end] = /^(\d{1,13})\.\.(\d{1,13})$/.exec(text) ?? []
  if (begin !== undefined && Number(begin) < Number(end)) {
    return { begin: Number(begin), end: Number(end) }
  }
  throw new ThinfsError(
    'BAD_ARGUMENT',
    `${text}: two numbers of blocks as 5..45, the second larger`,
  )
}
