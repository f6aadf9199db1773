import { execFile } from 'node:child_process'
import { rmSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { promisify } from 'node:util'
import { GIB, TIB } from '../../src/base/index.js'
import { atMost, type Cell, type Place, paired, type Scenario, type Settings } from '../scenario.js'
import { plainFile, thinfs, withLoop, withServers } from '../servers.js'

const exec = promisify(execFile)
const SIZE = TIB

/**
 * mkfs.ext4 as anybody calls it, through a loop device on a file that is new: it discards all of
 * the device, zeroes the journal, and writes group descriptors all over it. In memory, where the
 * plain file pays for the journal, for tmpfs cannot zero a range without writing to it; and on the
 * disk, where it can.
 */
export const mkfs: Scenario = {
  name: 'mkfs',
  about: 'mkfs.ext4 on a loop device of 1 TiB',
  memory: 6 * GIB,
  async run(place: Place, settings: Settings) {
    const cells: Cell[] = []
    for (const where of ['memory', 'disk'] as const) {
      const name = `mkfs/${where}`
      if (!settings.wants(name)) continue
      const samples = await measureMkfs(place[where], settings)
      cells.push({ name, unit: 's', samples, goals: [atMost(1.3, 'thinfs', 'plain')] })
    }
    return cells
  },
}

function measureMkfs(folder: string, settings: Settings): Promise<Cell['samples']> {
  const { signal, rounds } = settings
  const names = Array.from({ length: rounds }, (_, round) => `round-${round}`)
  const contender = thinfs(SIZE, { volumes: Object.fromEntries(names.map(name => [name, SIZE])) })
  return withServers([contender], folder, signal, ([server]) =>
    paired([{ name: 'plain' }, server!], settings, async ({ name }, round) => {
      if (name === 'thinfs') return timeMkfs(join(dirname(server!.file), names[round]!), signal)
      const { file } = plainFile(folder, SIZE)
      try {
        return await timeMkfs(file, signal)
      } finally {
        rmSync(file)
      }
    }),
  )
}

/** @returns seconds */
function timeMkfs(file: string, signal: AbortSignal): Promise<number> {
  return withLoop(file, async device => {
    const begin = performance.now()
    await exec('mkfs.ext4', ['-q', '-F', device], { signal })
    return (performance.now() - begin) / 1000
  })
}
