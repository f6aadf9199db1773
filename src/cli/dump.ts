import { ThinfsError } from '../base/index.js'
import { type Output, poolCommand } from './command.js'
import { withMetadata } from './metadata-file.js'
import { printAll } from './output.js'

interface Options extends Output {
  metadataSnap?: boolean
  format: string
}

export const dump = poolCommand(
  'dump',
  'Print the metadata as XML, as thin_dump does: devices and mappings.',
  'thinfs dump /srv/pool > metadata.xml',
)
  .option('-m, --metadata-snap', 'the metadata snapshot that is held, as thin_dump -m')
  .option('--format <format>', 'xml; or json, which --json stands for', 'xml')
  .addHelpText(
    'after',
    `
The metadata of a mounted pool changes all the time; a metadata snapshot of it does not:
  $ thinfs message /srv/pool reserve_metadata_snap
  $ thinfs dump /srv/pool -m > metadata.xml
  $ thinfs message /srv/pool release_metadata_snap`,
  )
  .action(async (pool: string, { metadataSnap = false, format, json }: Options) => {
    if (format !== 'xml' && format !== 'json') {
      throw new ThinfsError('BAD_ARGUMENT', `--format ${format}: xml or json is possible`)
    }
    const { dumpXml, dumpJson } = await import('../streams/index.js')
    const text = json || format === 'json' ? dumpJson : dumpXml
    await withMetadata(pool, metadataSnap, (metadata, held) => printAll(text(metadata, held)))
  })
