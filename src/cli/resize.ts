import { ThinfsError, volumeMissing } from '../base/index.js'
import { formatSize, parseSize } from '../config/index.js'
import type { PoolAdmin } from '../volumes/index.js'
import { command, type Output, POOL_HELP, print } from './command.js'
import { namingHolders, tellingOfFullPool, withPool } from './pool.js'

interface Options extends Output {
  shrink?: true
}

export const resize = command(
  'resize',
  'Change the virtual size of a volume. A smaller one takes --shrink.',
  'thinfs resize /srv/pool web +5G',
)
  .argument('<POOL>', POOL_HELP)
  .argument('<NAME>', 'of the volume')
  .argument('<SIZE>', 'as in 20G; +5G and -5G are relative')
  .option('--shrink', 'may become smaller: what is cut off is discarded; not while it is open')
  .action(async (pool: string, name: string, text: string, { shrink, ...output }: Options) => {
    const sign = /^[+-](?=\d)/.exec(text)?.[0] ?? ''
    const change = parseSize(text.slice(sign.length))
    if (sign === '' && change === 0) {
      throw new ThinfsError(
        'BAD_ARGUMENT',
        `${name}: a volume needs a size; thinfs remove takes it away`,
      )
    }
    const volume = await withPool(pool, 'write', async (admin, { file }) => {
      const resizeTo = (size: number) =>
        namingHolders(admin, file, [name], () =>
          tellingOfFullPool(admin, () => admin.resize({ name, size, ...(shrink && { shrink }) })),
        )
      if (sign === '') return await resizeTo(change)
      const before = await sizeOf(admin, name)
      const size = sign === '+' ? before + change : before - change
      if (size >= 0) return await resizeTo(size)
      const detail = `${name}: ${text} is more than the ${formatSize(before)} that it has`
      throw new ThinfsError('BAD_ARGUMENT', detail)
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

async function sizeOf(admin: PoolAdmin, name: string): Promise<number> {
  const volume = (await admin.list()).find(volume => volume.name === name)
  if (volume) return volume.size
  throw volumeMissing(name)
}
