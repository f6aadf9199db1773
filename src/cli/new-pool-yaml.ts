import { existsSync, mkdirSync, writeFileSync } from 'node:fs'
import { dirname } from 'node:path'
import { errnoOf, ThinfsError } from '../base/index.js'
import { type PoolConfig, renderConfig } from '../config/index.js'

/**
 * A pool.yaml made of options, as it is read.
 * @throws BAD_ARGUMENT for what the file may not say
 */
export async function checkedConfig(config: PoolConfig): Promise<PoolConfig> {
  const { parseConfig } = await import('../config/index.js')
  const { file: path } = config
  try {
    return parseConfig(renderConfig(config), path, path)
  } catch (err) {
    // The file is not there: its lines would mean nothing.
    const message = (err as Error).message.slice(path.length).replace(/^:\d+:\d+: /, '')
    throw new ThinfsError('BAD_ARGUMENT', message, { cause: err })
  }
}

/**
 * Writes the pool.yaml of a pool that is new to thinfs, and makes its folder if need be.
 * @param config made of options and of what is there: an error names no line
 * @throws BAD_ARGUMENT for what the file may not say; POOL_IN_USE where there is one; errors of
 *   mkdir(2) and open(2)
 */
export async function writeNewConfig(config: PoolConfig): Promise<void> {
  const { file: path, folder } = config
  await checkedConfig(config)
  mkdirSync(dirname(folder), { recursive: true })
  if (!existsSync(folder)) mkdirSync(folder, { mode: 0o700 })
  try {
    // As durable as the first flush: nothing else says where the data is, and in which blocks.
    writeFileSync(path, renderConfig(config), { flag: 'wx', mode: 0o600, flush: true })
  } catch (err) {
    if (errnoOf(err) !== 'EEXIST') throw err
    throw new ThinfsError('POOL_IN_USE', `${path}: another process is making the pool`)
  }
}
