import { execFile } from 'node:child_process'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { GIB, KIB, SECTOR_SIZE, TIB } from '../../src/base/index.js'
import { servingPid } from '../engine.js'
import { LOADS, measure, unitOf } from '../fio.js'
import { atLeast, atMost, type Cell, paired, type Scenario } from '../scenario.js'
import { type Contender, mountPlan, type Server, sparseFile, withServers } from '../servers.js'

const SIZE = TIB
const BLOCK = 64 * KIB
const METADATA_SIZE = 2 * GIB
/** Of one measurement: there are many. */
const SECONDS_MAX = 2
const SETS = [
  { name: 'all', size: SIZE },
  { name: 'small', size: GIB },
]
const READS = LOADS.filter(({ rw }) => rw === 'randread')
const WARM_UP_SECONDS = 5
const RESIDENT = 'working-set/resident'

/**
 * All of a volume is mapped, as thin_restore makes it in half a minute: to write it would take an
 * hour, and more memory than there is. The data file is one hole, for both sets, so that only the
 * mappings differ: there are as many of them as lookup tables keep, and most were looked up before
 * it is measured, as after a while of use. Reads alone: writes would fill the hole.
 */
export const workingSet: Scenario = {
  name: 'working-set',
  about: 'reads all over 1 TiB of mappings, against 1 GiB of them',
  memory: METADATA_SIZE,
  run({ memory }, settings) {
    const { signal } = settings
    const seconds = Math.min(settings.seconds, SECONDS_MAX)
    return withServers([MAPPED], memory, signal, async ([server]) => {
      await measure(server!.file, READS.at(-1)!, WARM_UP_SECONDS, signal)
      const cells: Cell[] = []
      for (const load of READS) {
        const name = `working-set/${load.name}`
        if (!settings.wants(name) && !settings.wants(RESIDENT)) continue
        const samples = await paired(SETS, settings, ({ size }) =>
          measure(server!.file, { ...load, range: { offset: 0, size } }, seconds, signal),
        )
        const goals = [atLeast(0.7, 'all', 'small')]
        cells.push({ name, unit: unitOf(load), samples, goals })
      }
      const samples = { thinfs: [await residentMegabytes(server!)] }
      cells.push({ name: RESIDENT, unit: 'MB', samples, goals: [atMost(300, 'thinfs')] })
      return cells.filter(({ name }) => settings.wants(name))
    })
  },
}

const MAPPED: Contender = {
  name: 'pool',
  async prepare(folder) {
    const pool = join(folder, 'pool')
    mkdirSync(pool)
    sparseFile(join(pool, 'data'), SIZE)
    const metadata = sparseFile(join(pool, 'metadata'), METADATA_SIZE)
    writeFileSync(
      join(pool, 'pool.yaml'),
      `pool: mapped\nmetadata: {size: ${METADATA_SIZE}}\nvolumes: {volume: {size: ${SIZE}, id: 0}}\n`,
    )
    const xml = join(folder, 'metadata.xml')
    const blocks = SIZE / BLOCK
    writeFileSync(
      xml,
      `<superblock uuid="" time="0" transaction="0" version="2" data_block_size="${BLOCK / SECTOR_SIZE}" nr_data_blocks="${blocks}">
        <device dev_id="0" mapped_blocks="${blocks}" transaction="0" creation_time="0" snap_time="0">
          <range_mapping origin_begin="0" data_begin="0" length="${blocks}" time="0"/>
        </device>
      </superblock>`,
    )
    await promisify(execFile)('thin_restore', ['--quiet', '-i', xml, '-o', metadata])
    return mountPlan(folder)
  },
}

/** What the engine has in memory. */
async function residentMegabytes(server: Server): Promise<number> {
  const status = readFileSync(`/proc/${await servingPid(server)}/status`, 'utf8')
  const kibibytes = Number(/^VmRSS:\s+(\d+) kB$/m.exec(status)![1])
  return (kibibytes * KIB) / 1e6
}
