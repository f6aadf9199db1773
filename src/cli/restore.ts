import { randomBytes } from 'node:crypto'
import { createReadStream, existsSync, statSync } from 'node:fs'
import { SECTOR_SIZE, ThinfsError } from '../base/index.js'
import { type Output, poolCommand, print } from './command.js'
import { Progress } from './progress.js'
import { noteDoubts, withUnmounted } from './unmounted.js'

interface Options extends Output {
  input?: string
  force?: true
}

const UUID_SIZE = 16

export const restore = poolCommand(
  'restore',
  `Make the metadata of an unmounted pool from a dump, as thin_restore does. The metadata that the pool
has is kept in a file beside it.`,
  'thinfs restore /srv/pool -i metadata.xml',
)
  .option('-i, --input <file>', 'the XML of thinfs dump or thin_dump; default: standard input')
  .option('--force', 'also where the pool has devices')
  .addHelpText(
    'after',
    `
The dump has to be whole; until it is read and what was made of it is found sound, nothing changes. A
dump that is older than the pool's data leads to blocks that hold something else by now: mount it with
-o ro first, and look.`,
  )
  .action(async (pool: string, { input, force, ...output }: Options) => {
    const result = await withUnmounted(pool, async (config, files) => {
      const { devicesIn, replaceMetadata, tracesOf } = await import('../volumes/index.js')
      const { restoreXml } = await import('../streams/index.js')
      if (force !== true) mustBeEmpty(files.metadata.path, devicesIn(files.metadata))
      const { uuid } = tracesOf(files)
      const data = await files.openData(config)
      const { stream, size } = open(input)
      const progress = new Progress('restoring', size)
      try {
        const { result, kept } = await replaceMetadata(config, files, target =>
          restoreXml(stream, target, {
            uuid: uuid ?? randomBytes(UUID_SIZE),
            dataBlockSectors: config.dataBlockSize / SECTOR_SIZE,
            nrDataBlocks: Math.floor(data.size / config.dataBlockSize),
            onProgress: bytes => progress.show(bytes, bytes),
          }),
        )
        return { ...result, kept }
      } finally {
        progress.end()
        stream.destroy()
      }
    })
    const { devices, mappedBlocks, kept } = result
    await noteDoubts(pool)
    print(
      output,
      result,
      `${devices} devices, ${mappedBlocks} mappings; the metadata that was there is ${kept}`,
    )
  })

/** @param devices null for damaged metadata */
function mustBeEmpty(path: string, devices: number | null): void {
  if (devices === 0) return
  const has = devices === null ? 'it has metadata, which is damaged' : `it has ${devices} devices`
  const how = '--force puts the restored metadata in its place, and keeps this beside it'
  throw new ThinfsError('HAS_DATA', `${path}: ${has}; ${how}`)
}

function open(input: string | undefined) {
  if (input === undefined) {
    if (process.stdin.isTTY) {
      throw new ThinfsError('BAD_ARGUMENT', 'a dump is wanted: -i FILE, or standard input')
    }
    return { stream: process.stdin, size: null }
  }
  if (!existsSync(input)) {
    throw new ThinfsError('BAD_ARGUMENT', `${input}: no such file`, { errno: 'ENOENT' })
  }
  const stat = statSync(input)
  if (stat.isDirectory()) {
    throw new ThinfsError('BAD_ARGUMENT', `${input}: is a folder, not a dump`, { errno: 'EISDIR' })
  }
  return { stream: createReadStream(input), size: stat.size }
}
