import { SECTOR_SIZE } from '../base/index.js'
import type { RepairReport } from '../streams/index.js'
import { command, type Output, POOL_HELP, print } from './command.js'
import { Progress } from './progress.js'
import { noteDoubts, withUnmounted } from './unmounted.js'

export const repair = command(
  'repair',
  `Make new metadata of what can be read of an unmounted pool's, as thin_repair does, and name what is
lost. The damaged metadata is kept in a file beside it.`,
  'thinfs repair /srv/pool',
)
  .argument('<POOL>', POOL_HELP)
  .addHelpText(
    'after',
    `
Where superblock or roots are damaged, all blocks are searched for the newest trees. Mappings that are
lost read as zeros: mount with -o ro first, and look. Sound metadata is left as it is; thinfs check
--repair-leaks is for leaks.`,
  )
  .action(async (pool: string, output: Output) => {
    const result = await withUnmounted(pool, async (config, files) => {
      const { replaceMetadata, tracesOf } = await import('../volumes/index.js')
      const { isSound, repairMetadata } = await import('../streams/index.js')
      if (isSound(files.metadata)) return null
      const { uuid, transactionId, names } = tracesOf(files)
      const data = await files.openData(config)
      const facts = {
        dataBlockSectors: config.dataBlockSize / SECTOR_SIZE,
        nrDataBlocks: Math.floor(data.size / config.dataBlockSize),
        ...{ uuid, transactionId },
        devIds: names && new Set(names.keys()),
      }
      const progress = new Progress('repairing', 1)
      try {
        const { result, kept } = await replaceMetadata(config, files, target =>
          repairMetadata(files.metadata, target, facts, (done, all) => progress.show(done / all)),
        )
        return { ...result, kept, names }
      } finally {
        progress.end()
      }
    })
    if (result === null)
      return print(output, { repaired: false }, 'it is sound: nothing is changed')
    const { names, ...report } = result
    await noteDoubts(pool)
    print(output, { repaired: true, ...report }, describe(report, names ?? new Map()).join('\n'))
  })

function describe(
  report: RepairReport & { kept: string },
  names: ReadonlyMap<number, string>,
): string[] {
  const { superblock, searched, transactionId, devices, mappedBlocks, kept } = report
  const nameOf = (devId: number): string => names.get(devId) ?? `device ${devId}`
  const lines: string[] = []
  if (superblock !== null) lines.push(`the superblock was damaged: ${superblock}`)
  if (searched) {
    lines.push(
      `the trees were found by a search, as of transaction ${transactionId}: the last changes may be missing`,
    )
  }
  for (const { begin, end, why } of report.lostDevices) {
    lines.push(`lost: devices ${rangeOf(begin, end)}, if there were any: ${why}`)
  }
  for (const { devId, begin, end, why } of report.lost) {
    lines.push(`lost: ${nameOf(devId)}: mappings of blocks ${rangeOf(begin, end)}: ${why}`)
  }
  for (const devId of report.withoutDetails) {
    lines.push(`${nameOf(devId)}: when it was made is not known any more`)
  }
  lines.push(`${devices} devices, ${mappedBlocks} mappings saved; the damaged metadata is ${kept}`)
  return lines
}

const rangeOf = (begin: number, end: number): string =>
  end === Number.POSITIVE_INFINITY ? `from ${begin}` : `${begin} to ${end - 1}`
