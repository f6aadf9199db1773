import { ThinfsError } from '../base/index.js'
import { type Output, poolCommand } from './command.js'
import { withMetadata } from './metadata-file.js'
import { printAll } from './output.js'
import { Progress } from './progress.js'

interface Options extends Output {
  metadataSnap?: boolean
  format: string
}

export const FORMATS = ['xml', 'human', 'json']

export const dump = poolCommand(
  'dump',
  'Print the metadata as XML, as thin_dump does: devices and mappings.',
  'thinfs dump /srv/pool > metadata.xml',
)
  .option('-m, --metadata-snap', 'the metadata snapshot that is held, as thin_dump -m')
  .option('--format <format>', "xml; human, thin_dump's human_readable; or json, as --json", 'xml')
  .addHelpText(
    'after',
    `
The metadata of a mounted pool changes all the time; a metadata snapshot of it does not:
  $ thinfs message /srv/pool reserve_metadata_snap
  $ thinfs dump /srv/pool -m > metadata.xml
  $ thinfs message /srv/pool release_metadata_snap`,
  )
  .action(async (pool: string, { metadataSnap = false, format, json }: Options) => {
    if (!FORMATS.includes(format) || (json && format === 'human')) {
      const what = json ? '--json is a format of its own' : 'xml, human or json is possible'
      throw new ThinfsError('BAD_ARGUMENT', `--format ${format}: ${what}`)
    }
    const { dumpHuman, dumpJson, dumpXml } = await import('../streams/index.js')
    const text = json || format === 'json' ? dumpJson : format === 'human' ? dumpHuman : dumpXml
    const progress = new Progress('dumping', 1)
    const show = (done: number, all: number): void => progress.show(done / all)
    // On a terminal the dump itself shows how far it has come.
    const onProgress = process.stdout.isTTY ? null : show
    try {
      await withMetadata(pool, metadataSnap, (metadata, held) =>
        printAll(text(metadata, held, onProgress)),
      )
    } finally {
      progress.end()
    }
  })
