import { SECTOR_SIZE } from '../base/index.js'
import { type Output, poolCommand, print } from './command.js'
import { lostLines } from './lost.js'
import { Progress } from './progress.js'
import { noteDoubts, withUnmounted } from './unmounted.js'

export const repair = poolCommand(
  'repair',
  `Make new metadata of what can be read of an unmounted pool's, as thin_repair does, and name what is
lost. The damaged metadata is kept in a file beside it.`,
  'thinfs repair /srv/pool',
)
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
        dataSize: data.size,
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
    const { devices, mappedBlocks, kept } = report
    const saved = `${devices} devices, ${mappedBlocks} mappings saved; the damaged metadata is ${kept}`
    const lost = lostLines(report, names ?? new Map())
    const next =
      'look with thinfs mount -o ro; thinfs mount --accept-metadata then takes it as it is'
    const lines = [...lost, saved, ...(lost.length > 0 ? [next] : [])]
    print(output, { repaired: true, ...report }, lines.join('\n'))
  })
