import { ThinfsError } from '../base/index.js'
import type { CheckReport } from '../volumes/index.js'
import { command, type Output, POOL_HELP, print } from './command.js'
import { withDaemonOr } from './pool.js'

export const check = command(
  'check',
  "Check the pool's metadata and volumes.json; exit 1 when they are damaged.",
  'thinfs check /srv/pool',
)
  .argument('<POOL>', POOL_HELP)
  .action(async (pool: string, output: Output) => {
    const report = await withDaemonOr(
      pool,
      admin => admin.check(),
      // Not by opening the pool: damage may be what keeps it from being opened.
      async config => (await import('../volumes/index.js')).checkPool(config),
    )
    print(output, report, describe(report))
    const errors = report.problems.filter(({ severity }) => severity === 'error').length
    if (errors > 0) {
      const what = errors === 1 ? 'an error' : `${errors} errors`
      throw new ThinfsError('METADATA_CORRUPT', `${pool}: the check found ${what}`)
    }
  })

function describe(report: CheckReport): string {
  const lines = report.problems.map(({ severity, message }) => `${severity}: ${message}`)
  lines.push(
    `${report.devices} devices, ${report.mappedBlocks} mappings, ${report.usedDataBlocks} data ` +
      `blocks and ${report.usedMetadataBlocks} metadata blocks in use`,
  )
  return lines.join('\n')
}
