/** Changing values in pool.yaml, by a command that changes the pool alike. */
import { accessSync, constants, readFileSync } from 'node:fs'
import { dirname } from 'node:path'
import { errnoOf, ThinfsError } from '../base/index.js'
import { loadConfig, type PoolConfig, type Setting, withValues } from '../config/index.js'
import { replaceFile } from '../storage/index.js'

/** A value, and the configuration that has it. */
export interface Change {
  settings: Setting[]
  apply(config: PoolConfig): PoolConfig
}

/**
 * Called before the pool is changed, so that one is not done without the other.
 * @throws BAD_CONFIG where the file cannot have the values; IO_ERROR where it may not be written
 */
export function mustTake(file: string, change: Change): void {
  if (change.settings.length === 0) return
  edited(file, change)
  for (const path of [file, dirname(file)]) {
    try {
      accessSync(path, constants.W_OK)
    } catch (err) {
      throw notWritten(file, change, err)
    }
  }
}

/**
 * Replaces the values as they are in the file now, durably. Somebody may have edited it meanwhile.
 * @throws as `mustTake`
 */
export async function changePoolYaml(file: string, change: Change): Promise<void> {
  if (change.settings.length === 0) return
  const text = edited(file, change)
  try {
    await replaceFile(file, text)
  } catch (err) {
    throw notWritten(file, change, err)
  }
}

function edited(file: string, { settings, apply }: Change): string {
  const wanted = apply(loadConfig(file))
  return withValues(readFileSync(file, 'utf8'), settings, { path: file, file, wanted })
}

function notWritten(file: string, { settings }: Change, err: unknown): ThinfsError {
  const values = settings.map(([path, value]) => `${path.join('.')}: ${value}`).join(', ')
  const what = `${file}: cannot be written, to have ${values}: ${(err as Error).message}`
  return new ThinfsError('IO_ERROR', what, { cause: err, errno: errnoOf(err) })
}
