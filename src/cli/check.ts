import { ThinfsError } from '../base/index.js'
import type { CheckReport } from '../volumes/index.js'
import { command, type Output, POOL_HELP, print } from './command.js'
import { withDaemonOr } from './pool.js'

interface Options extends Output {
  deep?: true
}

export const check = command(
  'check',
  "Check the pool's metadata and volumes.json, with --deep its data; exit 1 on damage.",
  'thinfs check /srv/pool',
)
  .argument('<POOL>', POOL_HELP)
  .option('--deep', 'read every mapped block too, and see that free ones are holes')
  .action(async (pool: string, { deep, ...output }: Options) => {
    const report = await withDaemonOr(
      pool,
      'read',
      admin => admin.check({ deep: deep === true }),
      // Not by opening the pool: damage may be what keeps it from being opened.
      async (config, files) =>
        (await import('../volumes/index.js')).checkPool(config, { deep: deep === true, files }),
    )
    print(output, report, describe(report))
    const errors = report.problems.filter(({ severity }) => severity === 'error')
    if (errors.length > 0) {
      const what = errors.length === 1 ? 'an error' : `${errors.length} errors`
      // Damage is what matters most, where there is some.
      const isDamage = errors.some(({ code }) => code === undefined)
      const code = isDamage ? 'METADATA_CORRUPT' : errors[0]!.code!
      throw new ThinfsError(code, `${pool}: the check found ${what}`)
    }
  })

function describe(report: CheckReport): string {
  const lines = report.problems.map(({ severity, message }) => `${severity}: ${message}`)
  lines.push(
    `${report.devices} devices, ${report.mappedBlocks} mappings, ${report.usedDataBlocks} data ` +
      `blocks and ${report.usedMetadataBlocks} metadata blocks in use`,
  )
  if (report.data) {
    const { readBytes, unreadableBlocks, strayBlocks } = report.data
    const free =
      strayBlocks === null ? 'free ones need not be holes' : `${strayBlocks} free ones hold data`
    lines.push(`${readBytes} bytes of data read, ${unreadableBlocks} blocks unreadable, ${free}`)
  }
  return lines.join('\n')
}
