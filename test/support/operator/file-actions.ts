/** What people do with the files of the mount. */
import type { FileAnswer } from './hands.js'
import { type Deed, type ModelVolume, type Tag, UNIT } from './model.js'
import type { Action, Operator } from './operator.js'

/** Blocks that one request changes at most: 2 MiB. */
const MOST = 512
/** Where volumes that are written to end: 8 MiB. */
export const END = 2048

/**
 * What a full pool refuses has changed nothing. A disk of the host that fills up in the middle of a
 * write leaves it done in part, as on any block device; with other errors nobody knows.
 */
export const changedNothing = (errno: string, { scarce }: Deed): boolean =>
  errno === 'ENOENT' || (errno === 'ENOSPC' && !scarce)

/** Some blocks, often whole blocks of the pool. */
function someBlocks({ random }: Operator, end: number): { block: number; count: number } {
  const unit = random.of([1, 1, 4, 16])
  const count = Math.min(end, random.between(1, random.of([4, 64, MOST / unit])) * unit)
  const block = Math.floor(random.below(end - count + 1) / unit) * unit
  return { block, count }
}

/** Does something to one of his volumes, and says so to the model. */
async function onOwn(
  operator: Operator,
  work: (volume: ModelVolume, deed: Deed) => Promise<void>,
): Promise<void> {
  const { own, random, world } = operator
  if (own.length === 0) return
  const volume = random.of(own)
  await world.doing([volume], deed => work(volume, deed))
}

function wrote(
  volume: ModelVolume,
  block: number,
  tags: Tag[],
  answer: FileAnswer,
  deed: Deed,
): void {
  const { errno, written = 0, flushed } = answer
  if (errno === undefined) {
    volume.write(block, tags.slice(0, written), true)
    if (flushed === 'ok') volume.flushed()
  } else if (!changedNothing(errno, deed)) {
    volume.write(block, tags, false)
  }
}

async function write(operator: Operator, flush: boolean): Promise<void> {
  await onOwn(operator, async (volume, deed) => {
    const { block, count } = someBlocks(operator, END)
    const tags = operator.tags(volume, block, count)
    const request = { do: 'write', name: volume.name, block, tags, flush }
    wrote(volume, block, tags, await operator.file(request, deed), deed)
  })
}

async function clear(operator: Operator, how: 'punch' | 'zero'): Promise<void> {
  await onOwn(operator, async (volume, deed) => {
    const end = volume.currentSize / UNIT
    if (end === 0) return
    const { block, count } = someBlocks(operator, end)
    const request = { do: how, name: volume.name, block, count }
    const { errno } = await operator.file(request, deed)
    // An edge may find no room when the rest was done.
    volume.clear(block, block + count, errno === undefined)
  })
}

export const FILE_ACTIONS: readonly Action[] = [
  { name: 'write and flush', weight: 10, run: operator => write(operator, true) },
  { name: 'write', weight: 8, run: operator => write(operator, false) },
  { name: 'punch', weight: 4, run: operator => clear(operator, 'punch') },
  { name: 'zero', weight: 2, run: operator => clear(operator, 'zero') },
  {
    name: 'flush',
    weight: 2,
    run: operator =>
      onOwn(operator, async (volume, deed) => {
        const { errno } = await operator.file({ do: 'flush', name: volume.name }, deed)
        if (errno === undefined) volume.flushed()
      }),
  },
  {
    name: 'truncate',
    weight: 3,
    run: operator =>
      onOwn(operator, async (volume, deed) => {
        const size = operator.random.between(0, END) * UNIT
        const request = { do: 'truncate', name: volume.name, size }
        const { errno } = await operator.file(request, deed)
        if (errno !== 'ENOENT') volume.resize(size, errno === undefined)
      }),
  },
  {
    name: 'make with truncate',
    weight: 3,
    async run(operator) {
      const { model } = operator.world
      const size = operator.random.between(0, END) * UNIT
      const volume = model.draft(operator.id, operator.newName(), null, size)
      await operator.world.doing([volume], async deed => {
        const { name } = volume
        const request = { do: 'truncate', name, size, create: true }
        const { errno } = await operator.file(request, deed)
        if (errno === undefined) model.add(volume)
        else {
          // It may have been made, and not have been given its size.
          volume.size.set(0, false)
          operator.world.ask(listing => {
            const found = listing.find(info => info.name === name)
            if (found) model.add(volume)
          })
        }
      })
      await operator.world.settle()
    },
  },
  {
    name: 'rm',
    weight: 2,
    run: operator =>
      onOwn(operator, async (volume, deed) => {
        const { model } = operator.world
        const { errno } = await operator.file({ do: 'remove', name: volume.name }, deed)
        if (errno === undefined) model.remove(volume)
        else if (errno !== 'ENOENT') askWhetherGone(operator, volume)
      }),
  },
  {
    name: 'mv',
    weight: 2,
    run: operator =>
      onOwn(operator, async (volume, deed) => {
        const { random, own, world } = operator
        // Now and then over another, which is gone then.
        const over = random.chance(0.3) ? random.of(own) : undefined
        const target = over === volume || over?.deeds.size ? undefined : over
        const to = target?.name ?? operator.newName()
        const move = async (both: Deed): Promise<void> => {
          const { errno } = await operator.file({ do: 'rename', name: volume.name, to }, both)
          if (errno === undefined) {
            if (target) world.model.remove(target)
            volume.name = to
          } else if (errno !== 'ENOENT') {
            if (target) askWhetherGone(operator, target, volume)
            askWhatNameItHas(operator, volume, to)
          }
        }
        await (target ? world.doing([target], move) : move(deed))
      }),
  },
  {
    name: 'cp',
    weight: 4,
    run: operator =>
      onOwn(operator, async (volume, deed) => {
        const { own, random } = operator
        const source = random.of(own)
        const end = source.currentSize / UNIT
        if (source === volume || end === 0) return
        const { block, count } = someBlocks(operator, end)
        const toBlock = random.chance(0.5) ? block : random.below(END - count + 1)
        const request = { do: 'copy', name: source.name, to: volume.name, block, count, toBlock }
        const answer = await operator.world.doing([source], both => {
          both.raced ||= deed.raced
          return operator.file(request, both)
        })
        const { errno, copied = 0 } = answer
        const certain = errno === undefined
        if (errno === 'ENOENT') return
        for (let index = 0; index < (certain ? copied : count); index++) {
          const [first, ...others] = source.allowed(block + index)
          volume.put(toBlock + index, first!, certain)
          for (const tag of others) volume.put(toBlock + index, tag, false)
        }
        const length = (toBlock + (certain ? copied : count)) * UNIT
        if (length > volume.currentSize) volume.setSize(length, certain)
      }),
  },
  {
    name: 'read back',
    weight: 4,
    run: operator =>
      onOwn(operator, async (volume, deed) => {
        const answer = await operator.file({ do: 'read', name: volume.name }, deed)
        // Somebody else may have made it larger meanwhile.
        if (answer.errno !== undefined || deed.raced) return
        operator.world.counts.bytes += answer.size!
        const found = { size: answer.size!, tags: answer.tags! }
        operator.mustBeRight(volume.compare(found, false))
      }),
  },
]

/** Whether a volume that may have been removed is there, as itself or as `successor`. */
export function askWhetherGone(
  operator: Operator,
  volume: ModelVolume,
  successor?: ModelVolume,
): void {
  volume.pending = true
  const { name } = volume
  operator.world.ask(listing => {
    volume.pending = false
    const found = listing.find(info => info.name === name || info.name === volume.name)
    const isOther = successor && found?.devId === successor.devId
    if (!volume.gone && (!found || isOther)) operator.world.model.remove(volume)
  })
}

/** Which of two names a volume has. */
export function askWhatNameItHas(operator: Operator, volume: ModelVolume, to: string): void {
  volume.pending = true
  operator.world.ask(listing => {
    volume.pending = false
    const found = listing.find(
      ({ name, devId }) => name === to && devId === (volume.devId ?? devId),
    )
    if (found) volume.name = to
  })
}
