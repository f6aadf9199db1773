import { execFile } from 'node:child_process'
import { mkdirSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { promisify } from 'node:util'
import { GIB, MIB } from '../../src/base/index.js'
import {
  atLeast,
  type Cell,
  type Place,
  paired,
  type Scenario,
  type Settings,
} from '../scenario.js'
import { plainFile, thinfs, withLoop, withServers } from '../servers.js'
import { makeTar, NR_FILES } from '../source-tree.js'

const exec = promisify(execFile)
const SIZE = 4 * GIB
/** What ext4 itself, its journal above all, may take of the file when it is empty again. */
const EMPTY_MOST = 256 * MIB
const DISCARDED_MS = 5000
const POLL_MS = 100

interface Contender {
  name: string
  /** What has the loop device. */
  file: string
  /** Where its data is on the host. */
  data: string
}

/**
 * A day of a source tree on ext4, through a loop device: unpacked, synced, removed, synced, and its
 * space given back by fstrim. In memory: ext4 sends its writes many at a time and late, which makes
 * a disk's own moods larger than what is asked.
 */
export const tree: Scenario = {
  name: 'tree',
  about: `${NR_FILES} files unpacked, removed and trimmed on ext4`,
  memory: 6 * GIB,
  run({ memory }: Place, settings: Settings) {
    const { signal } = settings
    return withServers([thinfs(SIZE)], memory, signal, async ([server]) => {
      const tar = await makeTar(memory)
      const plain = plainFile(memory, SIZE)
      const contenders: Contender[] = [
        { ...plain, data: plain.file },
        { name: 'thinfs', file: server!.file, data: join(server!.folder, 'pool', 'data') },
      ]
      const samples = await paired(contenders, settings, async contender => {
        const seconds = await withLoop(contender.file, device =>
          withExt4(device, memory, folder => liveDay(tar, folder, signal)),
        )
        await mustBeEmpty(contender)
        return NR_FILES / seconds
      })
      const cells: Cell[] = [
        { name: 'tree/day', unit: 'files/s', samples, goals: [atLeast(0.8, 'thinfs', 'plain')] },
      ]
      return cells.filter(({ name }) => settings.wants(name))
    })
  },
}

/** @returns seconds */
async function liveDay(tar: string, folder: string, signal: AbortSignal): Promise<number> {
  const tree = join(folder, 'tree')
  mkdirSync(tree)
  const begin = performance.now()
  await exec('tar', ['-xf', tar, '-C', tree], { signal })
  await exec('sync', ['--file-system', folder], { signal })
  await exec('rm', ['-r', tree], { signal })
  await exec('sync', ['--file-system', folder], { signal })
  await exec('fstrim', [folder], { signal })
  return (performance.now() - begin) / 1000
}

/** Runs `use` with a new ext4 mounted, whose tables are written already. */
async function withExt4<T>(
  device: string,
  folder: string,
  use: (mountPoint: string) => Promise<T>,
): Promise<T> {
  const mountPoint = join(folder, 'ext4')
  mkdirSync(mountPoint, { recursive: true })
  const options = ['-q', '-F', '-E', 'lazy_itable_init=0,lazy_journal_init=0']
  await exec('mkfs.ext4', [...options, device])
  await exec('mount', [device, mountPoint])
  try {
    return await use(mountPoint)
  } finally {
    // Whoever was stopped may still be in it.
    await exec('umount', ['--lazy', mountPoint])
  }
}

/** @throws when the discards did not arrive; thinfs has a second to commit before it punches */
async function mustBeEmpty({ name, data }: Contender): Promise<void> {
  const taken = (): number => statSync(data).blocks * 512
  for (let ms = 0; taken() > EMPTY_MOST; ms += POLL_MS) {
    if (ms > DISCARDED_MS) throw new Error(`${name}: ${taken()} bytes are taken after fstrim`)
    await setTimeout(POLL_MS)
  }
}
