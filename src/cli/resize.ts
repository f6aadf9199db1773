import { ThinfsError, volumeMissing } from '../base/index.js'
import { formatSize, formatSizes, parseSize } from '../config/index.js'
import type { PoolAdmin, VolumeInfo } from '../volumes/index.js'
import { type Output, poolCommand, print } from './command.js'
import { namingHolders, tellingOfFullPool, withPool } from './pool.js'

interface Options extends Output {
  shrink?: true
  dryRun?: true
}

export const resize = poolCommand(
  'resize',
  'Change the virtual size of a volume. A smaller one takes --shrink.',
  'thinfs resize /srv/pool web +5G',
)
  .argument('<NAME>', 'of the volume')
  .argument('<SIZE>', 'as in 20G; +5G and -5G are relative')
  .option('--shrink', 'may become smaller: what is cut off is discarded; not while it is open')
  .option('-n, --dry-run', 'show what the size would be, and how much would be cut off')
  .action(async (pool: string, name: string, text: string, options: Options) => {
    const { shrink, dryRun, ...output } = options
    const sign = /^[+-](?=\d)/.exec(text)?.[0] ?? ''
    const change = parseSize(text.slice(sign.length))
    if (sign === '' && change === 0) {
      throw new ThinfsError(
        'BAD_ARGUMENT',
        `${name}: a volume needs a size; thinfs remove takes it away`,
      )
    }
    const sizeAfter = (before: number): number => {
      if (sign === '') return change
      const size = sign === '+' ? before + change : before - change
      if (size >= 0) return size
      const [has] = formatSizes(before, change)
      const detail = `${name}: ${text} is more than the ${has} that it has`
      throw new ThinfsError('BAD_ARGUMENT', detail)
    }
    if (dryRun) {
      const plan = await withPool(pool, 'read', async admin => {
        const volume = await find(admin, name)
        const size = sizeAfter(volume.size)
        const { bytes } = await admin.mappedPast({ name, size })
        return { volume, size, wouldLose: bytes }
      })
      return print(output, plan, describe(plan))
    }
    const volume = await withPool(pool, 'write', async (admin, { file }) => {
      const size = sign === '' ? change : sizeAfter((await find(admin, name)).size)
      return await namingHolders(admin, file, [name], () =>
        tellingOfFullPool(admin, () => admin.resize({ name, size, ...(shrink && { shrink }) })),
      )
    })
    print(output, volume, `${name}: ${formatSize(volume.size)}`)
  })

// -5G would be taken for an option: as the last argument it can stand behind `--`.
const parseOptions = resize.parseOptions.bind(resize)
resize.parseOptions = args => {
  if (args.includes('--')) return parseOptions(args)
  const isShrinking = (arg: string) => /^-\d/.test(arg)
  const others = args.filter(arg => !isShrinking(arg))
  return parseOptions([...others, '--', ...args.filter(isShrinking)])
}

async function find(admin: PoolAdmin, name: string): Promise<VolumeInfo> {
  const volume = (await admin.list()).find(volume => volume.name === name)
  if (volume) return volume
  throw volumeMissing(name)
}

interface Plan {
  volume: VolumeInfo
  size: number
  /** Bytes that are mapped past the new end. */
  wouldLose: number
}

function describe({ volume, size, wouldLose }: Plan): string {
  const [after, before] = formatSizes(size, volume.size)
  const sizes = `${volume.name}: ${after}, it is ${before}`
  if (size >= volume.size) return `${sizes}; nothing would be lost`
  const busy = volume.open ? '; not while it is in use' : ''
  return `${sizes}; ${formatSize(wouldLose)} mapped past the new end would be lost${busy}`
}
