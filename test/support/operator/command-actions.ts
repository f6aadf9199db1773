/** Every command of the command line, as it is meant, by one operator or against another. */
import type { VolumeInfo } from '../../../src/volumes/index.js'
import { END } from './file-actions.js'
import type { Interruption } from './hands.js'
import { type ModelVolume, UNIT } from './model.js'
import type { Action, Operator } from './operator.js'
import { isUnknown } from './world.js'

/** Volumes that an operator has at most, so that they can all be read. */
const MOST_VOLUMES = 8

const hasRoom = (operator: Operator): boolean => operator.own.length < MOST_VOLUMES
const hasOwn = (operator: Operator): boolean => operator.own.length > 0
const hasOthers = (operator: Operator): boolean => operator.others.length > 0

/** A signal at a moment from before the command has read its words until after it. */
function someInterruption({ random }: Operator): Interruption {
  return { signal: random.of(['SIGINT', 'SIGINT', 'SIGKILL']), afterMs: random.between(50, 500) }
}

const withInterruption = (interruption?: Interruption) => (interruption ? { interruption } : {})

async function create(operator: Operator, interruption?: Interruption): Promise<void> {
  const { random, poolArg, world } = operator
  const name = operator.newName()
  const size = random.between(1, END) * UNIT
  const devId = random.chance(0.3) ? operator.newDevId() : null
  const volume = world.model.draft(operator.id, name, devId, size)
  const id = devId === null ? [] : ['--id', `${devId}`]
  await operator.change({
    args: ['create', poolArg, name, '--size', `${size}`, '--json', ...id],
    volumes: [volume],
    done: stdout => isNew(operator, volume, JSON.parse(stdout)),
    look: listing =>
      isNew(
        operator,
        volume,
        listing.find(info => info.name === name),
      ),
    ...withInterruption(interruption),
  })
}

function isNew({ world }: Operator, volume: ModelVolume, info: VolumeInfo | undefined): void {
  if (!info) return
  volume.devId = info.devId
  world.model.add(volume)
}

async function snapshot(
  operator: Operator,
  origin: ModelVolume,
  interruption?: Interruption,
): Promise<void> {
  const { random, poolArg, world } = operator
  const name = operator.newName()
  const devId = random.chance(0.3) ? operator.newDevId() : null
  const volume = world.model.draft(operator.id, name, devId, 0)
  const id = devId === null ? [] : ['--id', `${devId}`]
  origin.watch(volume)
  await operator.change({
    args: ['snapshot', poolArg, origin.name, name, '--json', ...id],
    volumes: [origin, volume],
    done: stdout => isNew(operator, volume, JSON.parse(stdout)),
    look: listing =>
      isNew(
        operator,
        volume,
        listing.find(info => info.name === name),
      ),
    ...withInterruption(interruption),
  })
  origin.stopWatching(volume)
}

async function remove(
  operator: Operator,
  volumes: readonly ModelVolume[],
  options: { interruption?: Interruption; refusals?: readonly string[] } = {},
): Promise<boolean | null> {
  const { poolArg, world } = operator
  return operator.change({
    args: ['remove', '--yes', poolArg, ...volumes.map(({ name }) => name)],
    volumes,
    done: () => {
      for (const volume of volumes) world.model.remove(volume)
    },
    look: listing => {
      for (const volume of volumes) {
        const isThere = listing.some(({ name }) => name === volume.name)
        if (!isThere && !volume.gone) world.model.remove(volume)
      }
    },
    ...(options.refusals && { refusals: options.refusals }),
    ...withInterruption(options.interruption),
  })
}

async function rename(
  operator: Operator,
  volume: ModelVolume,
  interruption?: Interruption,
): Promise<void> {
  const to = operator.newName()
  await operator.change({
    args: ['rename', operator.poolArg, volume.name, to],
    volumes: [volume],
    done: () => {
      volume.name = to
    },
    look: listing => {
      if (listing.some(({ name }) => name === to)) volume.name = to
    },
    ...withInterruption(interruption),
  })
}

async function grow(
  operator: Operator,
  volume: ModelVolume,
  interruption?: Interruption,
): Promise<void> {
  const before = volume.currentSize
  const by = operator.random.between(1, 256) * UNIT
  const size = before + by
  // Relative only to what nobody else changes.
  const isRelative = volume.owner === operator.id && operator.random.chance(0.5)
  await operator.change({
    args: ['resize', operator.poolArg, volume.name, isRelative ? `+${by}` : `${size}`],
    volumes: [volume],
    done: () => grown(volume, size, before, true),
    look: () => grown(volume, size, before, false),
    ...withInterruption(interruption),
  })
}

/** Its owner may have made it longer or shorter meanwhile, in whichever order. */
function grown(volume: ModelVolume, size: number, before: number, certain: boolean): void {
  const isAlone = volume.currentSize === before
  volume.setSize(size, certain && isAlone)
  if (certain && isAlone) volume.size.flushed()
}

async function shrink(operator: Operator, isMeant: boolean): Promise<void> {
  const volume = operator.random.of(operator.own)
  const size = operator.random.below(volume.currentSize / UNIT + 1) * UNIT
  const option = isMeant ? ['--shrink'] : []
  const cutsData = volume.holdsDataFrom(size)
  const refusals = isMeant ? [] : ['EINVAL', 'EBUSY', 'EPERM', 'ENOTEMPTY']
  const done = await resizeTo(operator, volume, size, option, refusals)
  if (!isMeant && cutsData && done) {
    operator.mustBeRight([`${volume.name}: resized to ${size} without --shrink: data was cut off`])
  }
}

function resizeTo(
  operator: Operator,
  volume: ModelVolume,
  size: number,
  option: readonly string[],
  refusals: readonly string[],
): Promise<boolean | null> {
  return operator.change({
    args: ['resize', operator.poolArg, volume.name, `${size}`, ...option],
    volumes: [volume],
    done: () => volume.resize(size, true),
    look: listing => {
      const isDone = listing.some(info => info.name === volume.name && info.size === size)
      volume.resize(size, isDone)
    },
    refusals,
  })
}

/** dm-thin's own words; the volumes that they make have the name of their number. */
async function message(operator: Operator): Promise<void> {
  const { random, world, poolArg } = operator
  const send = (...words: (string | number)[]) => ['message', poolArg, words.join(' ')]
  const devId = operator.newDevId()
  const kind = random.of(['create_thin', 'create_snap', 'delete', 'transaction', 'metadata_snap'])
  const volume = world.model.draft(operator.id, `thin-${devId}`, devId, 0)
  const madeOrNot = {
    volumes: [volume],
    done: () => world.model.add(volume),
    look: (listing: readonly VolumeInfo[]) =>
      isNew(
        operator,
        volume,
        listing.find(info => info.devId === devId),
      ),
  }
  const origin = random.of(operator.own)
  switch (kind) {
    case 'create_thin':
      await operator.change({ args: send('create_thin', devId), ...madeOrNot })
      break
    case 'create_snap':
      if (origin?.devId == null) return
      origin.copyTo(volume)
      // Of a volume without a name of its own the size is what is mapped.
      volume.size.set(Math.ceil(origin.highestUsed / 65536) * 65536, false)
      await operator.change({
        args: send('create_snap', devId, origin.devId),
        ...madeOrNot,
        volumes: [volume, origin],
      })
      break
    case 'delete':
      if (origin?.devId == null) return
      await operator.change({
        args: send('delete', origin.devId),
        volumes: [origin],
        done: () => world.model.remove(origin),
        look: listing => {
          const isThere = listing.some(info => info.name === origin.name)
          if (!isThere && !origin.gone) world.model.remove(origin)
        },
      })
      break
    case 'transaction': {
      const { transactionId } = await world.status()
      const args = send('set_transaction_id', transactionId, transactionId + 1)
      // Somebody else may have changed it since.
      await operator.change({ args, refusals: ['EINVAL'] })
      await operator.mustBeRefused(send('set_transaction_id', 1 << 30, 1), ['EINVAL'])
      break
    }
    default:
      await operator.change({ args: send('reserve_metadata_snap'), refusals: ['EBUSY'] })
      await operator.change({ args: send('release_metadata_snap'), refusals: ['EINVAL'] })
  }
}

async function look(operator: Operator): Promise<void> {
  const { random, poolArg, world } = operator
  const args = random.of([
    ['list', poolArg],
    ['list', poolArg, '--json'],
    ['status', poolArg],
    ['status', poolArg, '--dm'],
    ['check', poolArg],
    ['check', poolArg, '--deep'],
  ])
  await world.doing([], async deed => {
    const ended = await operator.command(args)
    if (ended.status === 0 || isUnknown(ended) || deed.broken) return
    operator.mustBeRight([`${args.join(' ')}: ${ended.status} ${ended.stdout}${ended.stderr}`])
  })
}

/** A loop device, which is written to and read; meanwhile the volume cannot be removed. */
async function attach(operator: Operator): Promise<void> {
  const { world, random } = operator
  const volume = random.of(operator.own)
  const end = volume.currentSize / UNIT
  if (end === 0) return
  await world.doing([volume], async deed => {
    const { folder } = world.pool
    const ended = await operator.command(['attach', folder, volume.name])
    if (ended.status !== 0) {
      if (isUnknown(ended) || (await operator.isExcused('EBUSY', deed))) return
      operator.mustBeRight([`attach ${volume.name}: ${ended.stderr}`])
    }
    const name = ended.stdout.trim()
    const count = random.between(1, Math.min(end, 64))
    const block = random.below(end - count + 1)
    const tags = operator.tags(volume, block, count)
    const answer = await operator.file({ do: 'device_write', name, block, tags }, deed)
    if (answer.errno === undefined) volume.write(block, tags.slice(0, answer.written), true)
    else volume.write(block, tags, false)
    if (answer.errno === undefined) volume.flushed()
    const found = await operator.file({ do: 'device_read', name }, deed)
    if (found.errno === undefined && !deed.raced && !deed.broken) {
      operator.mustBeRight(volume.compare({ size: found.size!, tags: found.tags! }, false))
    }
    if (!deed.raced && !deed.broken) {
      const done = await random.of([
        () => remove(operator, [volume], { refusals: ['EBUSY'] }),
        () => resizeTo(operator, volume, 0, ['--shrink'], ['EBUSY']),
        () => operator.mustBeRefused(['umount', folder]).then(() => false),
      ])()
      // Once both processes were killed nobody has it open any more.
      if (done && !deed.broken) operator.mustBeRight([`${volume.name}: changed while attached`])
    }
    const { status, stderr } = await operator.command(['detach', folder, volume.name])
    if (status === 0) return
    await world.detach(name)
    if (!deed.broken && !deed.raced) operator.mustBeRight([`detach ${name}: ${stderr}`])
  })
}

/** Words that no pool takes. */
async function nonsense(operator: Operator): Promise<void> {
  const { random, poolArg, own, world } = operator
  const name = random.of(own)?.name ?? 'nobody'
  const free = operator.newName()
  const taken = random.of(own)?.devId ?? null
  await operator.mustBeRefused(
    random.of([
      ['create', poolArg, 'a/b', '--size', '1M'],
      ['create', poolArg, '..', '--size', '1M'],
      ['create', poolArg, '', '--size', '1M'],
      ['create', poolArg, 'thin-7', '--size', '1M'],
      ['create', poolArg, 'x'.repeat(256), '--size', '1M'],
      ['create', poolArg, free, '--size', '-1'],
      ['create', poolArg, free, '--size', '1000'],
      ['create', poolArg, free, '--size', '99999999T'],
      ['create', poolArg, free, '--size', 'much'],
      ['create', poolArg, free, '--size', '1M', '--id', '16777216'],
      ['create', poolArg, free, '--size', '1M', '--id', '-1'],
      ...(taken === null ? [] : [['create', poolArg, free, '--size', '1M', '--id', `${taken}`]]),
      ...(own.length === 0 ? [] : [['create', poolArg, name, '--size', '1M']]),
      ['snapshot', poolArg, 'nobody', free],
      ['rename', poolArg, 'nobody', free],
      ['resize', poolArg, 'nobody', '1M'],
      ['resize', poolArg, name, '1.5.2M'],
      ['remove', '--yes', poolArg, 'nobody'],
      ['message', poolArg, 'create_thin'],
      ['message', poolArg, 'create_thin 99999999'],
      ['message', poolArg, `create_snap ${operator.newDevId()} 16700000`],
      ['message', poolArg, 'delete 16700000'],
      ['message', poolArg, 'make_coffee'],
      ['attach', poolArg, 'nobody'],
      ['detach', poolArg, 'nobody'],
      ['list', world.pool.base],
      ['brew', poolArg],
      ['list', poolArg, '--sorted'],
    ]),
  )
}

export const COMMAND_ACTIONS: readonly Action[] = [
  { name: 'create', weight: 5, can: hasRoom, run: operator => create(operator) },
  {
    name: 'snapshot',
    weight: 6,
    can: operator => hasRoom(operator) && hasOwn(operator),
    run: operator => snapshot(operator, operator.random.of(operator.own)),
  },
  {
    name: 'snapshot of another',
    weight: 2,
    can: operator => hasRoom(operator) && hasOthers(operator),
    run: operator => snapshot(operator, operator.random.of(operator.others)),
  },
  {
    name: 'rename',
    weight: 2,
    can: hasOwn,
    run: operator => rename(operator, operator.random.of(operator.own)),
  },
  {
    name: 'rename of another',
    weight: 1,
    can: hasOthers,
    run: operator => rename(operator, operator.random.of(operator.others)),
  },
  {
    name: 'grow',
    weight: 3,
    can: hasOwn,
    run: operator => grow(operator, operator.random.of(operator.own)),
  },
  {
    name: 'grow of another',
    weight: 1,
    can: hasOthers,
    run: operator => grow(operator, operator.random.of(operator.others)),
  },
  { name: 'shrink', weight: 3, can: hasOwn, run: operator => shrink(operator, true) },
  { name: 'shrink unmeant', weight: 2, can: hasOwn, run: operator => shrink(operator, false) },
  {
    name: 'remove',
    weight: 4,
    can: hasOwn,
    run(operator) {
      const { own, random } = operator
      const volumes = [random.of(own), random.of(own)]
      return remove(operator, random.chance(0.7) ? volumes.slice(1) : [...new Set(volumes)])
    },
  },
  {
    name: 'remove of another',
    weight: 1,
    can: hasOthers,
    run: operator => remove(operator, [operator.random.of(operator.others)]),
  },
  {
    name: 'message',
    weight: 4,
    can: operator => hasRoom(operator) && hasOwn(operator),
    run: message,
  },
  { name: 'look', weight: 4, run: look },
  { name: 'attach', weight: 3, can: hasOwn, run: attach },
  { name: 'nonsense', weight: 4, run: nonsense },
  {
    name: 'interrupted command',
    weight: 4,
    can: operator => hasRoom(operator) && hasOwn(operator),
    run(operator) {
      const interruption = someInterruption(operator)
      const volume = operator.random.of(operator.own)
      return operator.random.of([
        () => create(operator, interruption),
        () => snapshot(operator, volume, interruption),
        () => rename(operator, volume, interruption),
        () => grow(operator, volume, interruption),
        () => remove(operator, [volume], { interruption }),
      ])()
    },
  },
]
