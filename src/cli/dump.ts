import { ThinfsError } from '../base/index.js'
import { command, type Output, POOL_HELP } from './command.js'
import { openServedOf } from './held.js'
import { printAll } from './output.js'
import { withDaemonOr } from './pool.js'

interface Options extends Output {
  metadataSnap?: boolean
  format: string
}

export const dump = command(
  'dump',
  'Print the metadata as XML, as thin_dump does: devices and mappings.',
  'thinfs dump /srv/pool > metadata.xml',
)
  .argument('<POOL>', POOL_HELP)
  .option('-m, --metadata-snap', 'the metadata snapshot that is held, as thin_dump -m')
  .option('--format <format>', 'xml; or what --json stands for', 'xml')
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
    const { dumpXml, dumpJson, heldRootOf } = await import('../streams/index.js')
    const text = json || format === 'json' ? dumpJson : dumpXml
    await withDaemonOr(
      pool,
      'read',
      async (admin, place) => {
        const { heldRoot } = await admin.status()
        if (!metadataSnap || heldRoot === 0) {
          const what = metadataSnap
            ? 'none is held'
            : 'the pool is mounted, what changes is not dumped'
          const how = 'thinfs message POOL reserve_metadata_snap, then thinfs dump POOL -m'
          throw new ThinfsError('SNAPSHOT_NOT_HELD', `${place.file}: ${what}; ${how}`)
        }
        const files = await openServedOf(admin, place)
        try {
          await printAll(text(files.metadata, heldRoot))
        } finally {
          files.close()
        }
        if ((await admin.status()).heldRoot === heldRoot) return
        const what = 'the metadata snapshot was released while it was dumped'
        throw new ThinfsError('SNAPSHOT_NOT_HELD', `${place.file}: ${what}`)
      },
      async (_, { metadata }) => {
        await printAll(text(metadata, metadataSnap ? heldRootOf(metadata) : null))
      },
    )
  })
