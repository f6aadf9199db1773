/**
 * What people do to a pool by mistake: files that do not belong together, a pool served twice. Each
 * time the operator puts back what he took away, as one does who is told; then all has to be there.
 */
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { runProgram } from './hands.js'
import { killBoth } from './kill-actions.js'
import type { Action, Operator } from './operator.js'
import { Violation } from './world.js'

/** A file of the pool, or its absence, in the place of the right one. */
interface Mistake {
  name: string
  file: string
  /**
   * Puts the wrong file there, which `aside` is moved away from.
   * @returns false: not possible yet
   */
  wrong(file: string, aside: string, folders: Folders): Promise<boolean>
  /** Whether nothing can be served; otherwise it may be, and nothing may be lost by it. */
  isRefused: boolean
}

interface Folders {
  /** What `data`, `metadata` and so on were when somebody copied them. */
  older: string
  /** A pool of the same kind. */
  other: string
}

async function copy(from: string, to: string): Promise<boolean> {
  if (!existsSync(from)) return false
  const { status, stderr } = await runProgram('cp', ['--sparse=always', from, to])
  if (status !== 0) throw new Error(stderr)
  return true
}

const older = async (file: string, _: string, folders: Folders): Promise<boolean> =>
  copy(join(folders.older, file.split('/').at(-1)!), file)
const other = async (file: string, _: string, folders: Folders): Promise<boolean> =>
  copy(join(folders.other, file.split('/').at(-1)!), file)
const none = async (): Promise<boolean> => true

async function cut(file: string, aside: string, size: string): Promise<boolean> {
  await copy(aside, file)
  return (await runProgram('truncate', ['-s', size, file])).status === 0
}

/** pool.yaml with other words in it. */
const replaced =
  (what: RegExp, by: string) =>
  async (file: string, aside: string): Promise<boolean> => {
    writeFileSync(file, readFileSync(aside, 'utf8').replace(what, by))
    return true
  }

const MISTAKES: readonly Mistake[] = [
  { name: 'old metadata', file: 'metadata', wrong: older, isRefused: false },
  { name: 'old names', file: 'volumes.json', wrong: older, isRefused: false },
  { name: 'old journal', file: 'journal', wrong: older, isRefused: false },
  { name: 'no metadata', file: 'metadata', wrong: none, isRefused: true },
  { name: 'no data', file: 'data', wrong: none, isRefused: true },
  { name: 'no names', file: 'volumes.json', wrong: none, isRefused: false },
  { name: 'no journal', file: 'journal', wrong: none, isRefused: false },
  {
    name: 'metadata of another pool',
    file: 'metadata',
    // Beside no names it is a pool that another program made.
    wrong: async (file, aside, folders) =>
      existsSync(join(file, '..', 'volumes.json')) && other(file, aside, folders),
    isRefused: true,
  },
  { name: 'names of another pool', file: 'volumes.json', wrong: other, isRefused: true },
  { name: 'journal of another pool', file: 'journal', wrong: other, isRefused: false },
  {
    name: 'half of the data',
    file: 'data',
    wrong: (file, aside) => cut(file, aside, '32M'),
    isRefused: true,
  },
  {
    name: 'no byte of the data',
    file: 'data',
    wrong: (file, aside) => cut(file, aside, '0'),
    isRefused: true,
  },
  {
    name: 'a part of the metadata',
    file: 'metadata',
    wrong: (file, aside) => cut(file, aside, '16K'),
    isRefused: true,
  },
  {
    name: 'no pool.yaml',
    file: 'pool.yaml',
    wrong: replaced(/.*/s, 'root:x:0:0:root:/root:/bin/bash\n'),
    isRefused: true,
  },
  {
    name: 'another block size',
    file: 'pool.yaml',
    wrong: replaced(/$/, 'data_block_size: 128K\n'),
    isRefused: true,
  },
]

/** Folders beside the pool's, made when they are needed first. */
async function foldersOf({ world }: Operator): Promise<Folders> {
  const { base } = world.pool
  const folders = { older: join(base, 'older'), other: join(base, 'other') }
  mkdirSync(folders.older, { recursive: true })
  if (!existsSync(folders.other)) {
    mkdirSync(folders.other)
    await world.mustSucceed('init', folders.other, '--data-size', '64M', '--volume', 'z=1M')
    await world.mustSucceed('create', folders.other, 'y', '--size', '2M')
    await world.mustSucceed('create', folders.other, 'x', '--size', '2M')
  }
  return folders
}

async function mistake(operator: Operator, what: Mistake): Promise<void> {
  const { world, random } = operator
  const { folder, path } = world.pool
  // A pool that never had a volume has no names.
  if (!existsSync(join(folder, what.file))) return
  const folders = await foldersOf(operator)
  const isKilled = random.chance(0.3)
  if (isKilled) await killBoth(operator)
  else await world.umount()

  const file = join(folder, what.file)
  const aside = `${file}.aside`
  const isJournal = what.file === 'journal'
  renameSync(file, aside)
  const isMade = await what.wrong(file, aside, folders)
  operator.say(`${what.name}: ${isMade ? 'made' : 'not possible'}`)
  let isServed = false
  if (isMade) {
    const looks = [
      ['list', folder],
      ['status', folder],
      ['check', folder],
      ['check', folder, '--deep'],
    ]
    for (const look of looks) if (random.chance(0.3)) await operator.command(look)
    isServed = (await operator.command(['mount', folder, path])).status === 0
    if (isServed) await world.mustSucceed('umount', folder)
  }
  // Once it was served without it, a journal has nothing to say any more.
  if (isServed && isJournal) rmSync(aside)
  else renameSync(aside, file)
  await world.mount()
  await world.quietPoint({
    unmount: random.chance(0.3),
    withoutJournal: isServed && isJournal && isKilled,
  })
  if (isServed && what.isRefused) throw new Violation(`${what.name}: it was served`)
}

/** A second pool.yaml that has the files of the first. */
async function secondPool(operator: Operator, sharesMetadata: boolean): Promise<void> {
  const { world } = operator
  const { base, data, metadata } = world.pool
  const folder = join(base, 'second')
  const place = join(base, 'second-mount')
  for (const each of [folder, place]) mkdirSync(each, { recursive: true })
  const itsMetadata = sharesMetadata ? metadata : join(folder, 'metadata')
  if (!sharesMetadata) await copy(metadata, itsMetadata)
  const yaml = `pool: test\ndata: { path: ${data}, size: 64M }\nmetadata: { path: ${itsMetadata}, size: auto }\n`
  writeFileSync(join(folder, 'pool.yaml'), yaml)
  try {
    await operator.mustBeRefused(['init', folder])
    const { status } = await operator.command(['mount', folder, place])
    if (status !== 0) return
    await world.mustSucceed('umount', folder)
    throw new Violation('one data file was served by two pools')
  } finally {
    rmSync(folder, { recursive: true })
  }
}

/** A file of the mounted pool is somewhere else for a while. */
async function movedWhileMounted(operator: Operator): Promise<void> {
  const { world, random } = operator
  const name = random.of(['data', 'metadata', 'volumes.json', 'journal'])
  const file = join(world.pool.folder, name)
  const aside = `${file}.aside`
  if (!existsSync(file)) return
  operator.say(`mv ${name} away while mounted`)
  renameSync(file, aside)
  const isKilled = random.chance(0.5)
  if (isKilled) await world.killing(() => world.killEngine())
  const made = operator.newName()
  const args = ['create', world.pool.folder, made, '--size', '1M']
  const { status } = await operator.command(args)
  // What was written meanwhile is newer; but an engine that began without names did not know them.
  const lostNames = isKilled && name === 'volumes.json'
  const isNewer = existsSync(file) && (name === 'volumes.json' || name === 'journal')
  if (isNewer && !lostNames) rmSync(aside)
  else renameSync(aside, file)
  await world.mustSucceed('restart', world.pool.folder)
  // What could not be made has left nothing.
  const found = (await world.list()).find(info => world.model.find(info.name) === undefined)
  if (found) {
    if (!lostNames && found.name !== made) throw new Violation(`${found.name}: nobody made it`)
    if (lostNames) await world.mustSucceed('rename', world.pool.folder, found.name, made)
    world.model.add(world.model.draft(operator.id, made, found.devId, found.size))
  } else if (status === 0) {
    throw new Violation(`${made}: it was made, and is not there`)
  }
  const withoutJournal = isKilled && name === 'journal'
  await world.quietPoint({ unmount: random.chance(0.3), withoutJournal })
}

export const MISTAKE_ACTIONS: readonly Action[] = [
  {
    name: 'copy the files',
    weight: 4,
    manner: 'alone',
    async run(operator) {
      const { world } = operator
      const { older } = await foldersOf(operator)
      await world.umount()
      for (const name of ['metadata', 'volumes.json', 'journal']) {
        await copy(join(world.pool.folder, name), join(older, name))
      }
      await world.mount()
    },
  },
  ...MISTAKES.map(
    (what): Action => ({
      name: what.name,
      weight: 0.6,
      manner: 'alone',
      run: operator => mistake(operator, what),
    }),
  ),
  {
    name: 'init again',
    weight: 1,
    async run(operator) {
      const { folder } = operator.world.pool
      const options = operator.random.of([[], ['--data-size', '1G']])
      await operator.mustBeRefused(['init', folder, ...options])
    },
  },
  {
    name: 'mount over its own folder',
    weight: 0.6,
    manner: 'alone',
    async run(operator) {
      const { world, random } = operator
      const { folder, base } = world.pool
      await world.umount()
      await operator.mustBeRefused(['mount', folder, random.of([folder, base])])
      await world.mount()
    },
  },
  {
    name: 'second pool.yaml',
    weight: 0.6,
    manner: 'alone',
    run: operator => secondPool(operator, true),
  },
  {
    name: 'second pool.yaml with a copy of the metadata',
    weight: 0.6,
    manner: 'alone',
    run: operator => secondPool(operator, false),
  },
  { name: 'move while mounted', weight: 1, manner: 'alone', run: movedWhileMounted },
]
