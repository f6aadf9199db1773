import { volumeMissing } from '../base/index.js'
import { formatSize } from '../config/index.js'
import type { PoolAdmin, VolumeInfo } from '../volumes/index.js'
import { command, type Output, POOL_HELP, print } from './command.js'
import { withPool } from './pool.js'

interface Options extends Output {
  exclusive?: true
}

const HEAD = ['NAME', 'ID', 'SIZE', 'MAPPED', 'DATA%', 'EXCLUSIVE', 'ORIGIN', 'CREATED', 'OPEN']
const NUMBERS = [1, 2, 3, 4, 5]

export const list = command(
  'list',
  'List the volumes: size, space mapped, origin, and when each was made.',
  'thinfs list /srv/pool --exclusive web web@monday',
)
  .argument('<POOL>', POOL_HELP)
  .argument('[NAME...]', 'of volumes')
  .option(
    '--exclusive',
    'count what removing each would give back, and all those named: a look at every mapping',
  )
  .action(async (pool: string, names: string[], { exclusive, ...output }: Options) => {
    const { table } = await import('./table.js')
    const { volumes, together } = await withPool(pool, 'read', async admin => {
      const all = await admin.list({ exclusive: exclusive === true })
      const volumes = named(all, names)
      const counts = exclusive === true && names.length > 0
      return { volumes, together: counts ? await togetherOf(admin, volumes) : null }
    })
    const rows = volumes.map(row)
    // Most pools have no such rules.
    const hasRules = volumes.some(({ limit, reserve }) => limit || reserve)
    const [lines, numbers] = hasRules
      ? withRules(volumes, [HEAD, ...rows])
      : [[HEAD, ...rows], NUMBERS]
    const text = table(lines, numbers)
    if (together === null) print(output, volumes, text)
    else print(output, { volumes, together }, `${text}\n${describe(together)}`)
  })

/** @throws VOLUME_MISSING */
function named(volumes: VolumeInfo[], names: readonly string[]): VolumeInfo[] {
  if (names.length === 0) return volumes
  const missing = names.find(wanted => volumes.every(({ name }) => name !== wanted))
  if (missing !== undefined) throw volumeMissing(missing)
  return volumes.filter(({ name }) => names.includes(name))
}

/** Bytes that removing all of some volumes gives back. */
async function togetherOf(admin: PoolAdmin, volumes: readonly VolumeInfo[]): Promise<number> {
  return (await admin.exclusive({ names: volumes.map(({ name }) => name) })).bytes
}

const describe = (together: number): string =>
  `removing all of these gives back ${formatSize(together)}`

/** Lines with the limit and the reserve of each volume behind its exclusive space. */
function withRules(
  volumes: readonly VolumeInfo[],
  [head, ...rows]: string[][],
): [string[][], number[]] {
  const at = HEAD.indexOf('EXCLUSIVE') + 1
  const size = (bytes: number | null): string => (bytes ? formatSize(bytes) : '-')
  const rules = volumes.map(({ limit, reserve }) => [size(limit), size(reserve)])
  const lines = [head!, ...rows].map((row, i) => {
    const added = i === 0 ? ['LIMIT', 'RESERVE'] : rules[i - 1]!
    return [...row.slice(0, at), ...added, ...row.slice(at)]
  })
  return [lines, [...NUMBERS, at, at + 1]]
}

function row(volume: VolumeInfo): string[] {
  const { name, devId, size, mapped, exclusive, origin, created, open } = volume
  return [
    name,
    String(devId),
    formatSize(size),
    formatSize(mapped),
    size === 0 ? '-' : ((mapped / size) * 100).toFixed(2),
    exclusive === null ? '-' : formatSize(exclusive),
    origin ?? '-',
    created === null ? '-' : localTime(created),
    open ? 'yes' : 'no',
  ]
}

/** @param time seconds since 1970 */
function localTime(time: number): string {
  // Intl would load ICU's data first, which takes longer than all the rest of a list.
  const date = new Date(time * 1000)
  const local = new Date(date.getTime() - date.getTimezoneOffset() * 60_000)
  return local.toISOString().slice(0, 'YYYY-MM-DDTHH:MM'.length).replace('T', ' ')
}
