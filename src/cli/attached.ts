import { type AttachedVolume, attachedVolumes, detachStale } from '../host/index.js'
import { command, type Output, POOL_HELP, print } from './command.js'
import { placeOfPool } from './pool.js'

interface Options extends Output {
  gc?: true
}

const HEAD = ['DEVICE', 'VOLUME', 'POOL', 'NAME', 'USED BY']

export const attached = command(
  'attached',
  'List the loop devices on volumes, and who uses them.',
  'thinfs attached --gc',
)
  .argument('[POOL]', `${POOL_HELP}; default: all, and devices that dead mounts left behind`)
  .option('--gc', 'detach those that nobody serves any more, and nobody uses')
  .action(async (pool: string | undefined, { gc, ...output }: Options) => {
    const volumes = await attachedVolumes(pool === undefined ? null : placeOfPool(pool).file)
    if (gc) {
      const outcome = await detachStale(volumes)
      for (const line of outcome.kept) process.stderr.write(`thinfs: stale, but ${line}\n`)
      print(output, outcome, outcome.detached.join('\n'))
      return
    }
    const { table } = await import('./table.js')
    print(output, volumes, volumes.length === 0 ? '' : table([HEAD, ...volumes.map(row)], []))
  })

function row({ device, volume, pool, names, readOnly, stale, users }: AttachedVolume): string[] {
  const state = [...(stale ? ['STALE: nobody serves it'] : []), ...(readOnly ? ['read-only'] : [])]
  return [
    device,
    volume,
    pool ?? '-',
    names.join(' ') || '-',
    [...state, ...users].join(', ') || '-',
  ]
}
