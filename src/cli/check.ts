import { ThinfsError } from '../base/index.js'
import type { PoolConfig } from '../config/index.js'
import type { CheckProgress, CheckReport, Mended, PoolAdmin, PoolFiles } from '../volumes/index.js'
import { type Output, poolCommand, print } from './command.js'
import { withDaemonOr } from './pool.js'
import { lookingEvery, PERIOD, Progress } from './progress.js'
import { withUnmounted } from './unmounted.js'

interface Options extends Output {
  deep?: true
  repairLeaks?: true
  clearNeedsCheck?: true
}

export const check = poolCommand(
  'check',
  "Check the pool's metadata and volumes.json, with --deep its data; exit 1 on damage.",
  'thinfs check /srv/pool',
)
  .option('--deep', 'read every mapped block too, and see that free ones are holes')
  .option('--repair-leaks', 'of an unmounted pool in which nothing else is wrong: give leaks back')
  .option('--clear-needs-check', 'of an unmounted pool in which nothing is wrong: clear the flag')
  .addHelpText(
    'after',
    `
As thin_check --auto-repair and --clear-needs-check-flag, the former clears the flag as well. What a
check finds afterwards is printed last. Damage is for thinfs repair.`,
  )
  .action(async (pool: string, options: Options) => {
    const { deep, repairLeaks, clearNeedsCheck, ...output } = options
    const mended =
      repairLeaks || clearNeedsCheck ? await mend(pool, { leaks: repairLeaks === true }) : null
    const report = await withDaemonOr(
      pool,
      'read',
      admin => checkServed(admin, deep === true),
      // Not by opening the pool: damage may be what keeps it from being opened.
      (config, files) => checkUnserved(config, files, deep === true),
    )
    const text = [...(mended === null ? [] : [mendedLine(mended)]), describe(report)].join('\n')
    print(output, mended === null ? report : { ...report, mended }, text)
    const errors = report.problems.filter(({ severity }) => severity === 'error')
    if (errors.length > 0) {
      const what = errors.length === 1 ? 'an error' : `${errors.length} errors`
      // Damage is what matters most, where there is some.
      const isDamage = errors.some(({ code }) => code === undefined)
      const code = isDamage ? 'METADATA_CORRUPT' : errors[0]!.code!
      throw new ThinfsError(code, `${pool}: the check found ${what}`)
    }
  })

/** Checks a mounted pool, and shows on a terminal how far that has come. */
export function checkServed(
  admin: Pick<PoolAdmin, 'check' | 'status'>,
  deep: boolean,
): Promise<CheckReport> {
  const act = (): Promise<CheckReport> => admin.check({ deep })
  if (!process.stderr.isTTY) return act()
  return showing(show => {
    const look = async (): Promise<void> => {
      const { check } = await admin.status()
      if (check) show(check)
    }
    return lookingEvery(PERIOD, look, act)
  })
}

/** The same for a pool that nobody serves. */
async function checkUnserved(
  config: PoolConfig,
  files: PoolFiles,
  deep: boolean,
): Promise<CheckReport> {
  const { checkPool } = await import('../volumes/index.js')
  return await showing(onProgress => checkPool(config, { deep, files, onProgress }))
}

/** Calls `act`, which is given what shows progress. */
async function showing<T>(
  act: (show: (progress: CheckProgress) => void) => Promise<T>,
): Promise<T> {
  const progress = {
    metadata: new Progress('checking metadata', 1),
    data: new Progress('checking data', 1),
  }
  try {
    return await act(({ part, done, all }) => progress[part].show(done / all))
  } finally {
    progress.metadata.end()
    progress.data.end()
  }
}

function mend(pool: string, what: { leaks: boolean }): Promise<Mended> {
  return withUnmounted(pool, async (config, files) => {
    const { mendPool } = await import('../volumes/index.js')
    return await mendPool(config, files, what)
  })
}

function mendedLine({ dataLeaks, metadataLeaks, needsCheck }: Mended): string {
  const flag = needsCheck ? 'needs_check cleared' : 'needs_check was not set'
  return `${dataLeaks} data blocks and ${metadataLeaks} metadata blocks given back, ${flag}`
}

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
