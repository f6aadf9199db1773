import { statSync } from 'node:fs'
import { dirname, resolve } from 'node:path'
import { ThinfsError } from '../base/index.js'
import { findPool } from '../daemon/index.js'
import { command, type Output, print } from './command.js'

export const doctor = command(
  'doctor',
  'See whether this machine has what thinfs needs, and how to mend it; exit 1 if it cannot mount.',
  'thinfs doctor /srv/pool',
)
  .argument('[POOL]', 'a pool, or a folder for one; the current folder is the default', '.')
  .action(async (reference: string, output: Output) => {
    const [{ examine }, { table }] = await Promise.all([
      import('../doctor/index.js'),
      import('./table.js'),
    ])
    const file = poolIn(reference)
    const folder = file === null ? resolve(reference) : dirname(file)
    const checks = await examine(folder, file)
    const failed = checks.filter(({ state }) => state === 'fail')
    const rows = checks.map(({ check, state, found, mend }) => [check, state, found, mend ?? '-'])
    const canMount = failed.length === 0
    print(output, { canMount, checks }, table([['CHECK', 'STATE', 'FOUND', 'TO DO'], ...rows]))
    if (!canMount) {
      const what = failed.map(({ check }) => check).join(', ')
      throw new ThinfsError('MOUNT_FAILED', `a pool cannot be mounted here: see ${what}`)
    }
  })

/** The pool.yaml that `reference` means; null for a folder without. @throws NOT_A_POOL */
function poolIn(reference: string): string | null {
  try {
    return findPool(reference)
  } catch (err) {
    if (statSync(reference, { throwIfNoEntry: false })?.isDirectory()) return null
    throw err
  }
}
