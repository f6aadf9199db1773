// Goal: whoever is killed at whatever moment, the journal has every change that was acknowledged
// and is not in the superblock that is found, and none that is in it; also when the host's disk was
// full now and then. Method: seeded schedules of what a pool does with its journal, killed in the
// middle of each write and after it; what the next process reads is held against plain lists.
import t from 'tap'
import { Journal } from '../../src/pool/journal.js'
import { replay } from '../../src/pool/journal-changes.js'
import { MemoryJournal } from '../support/memory-pool.js'
import { Random } from '../support/random.js'

/** A file whose disk is full at times: then an append leaves a part, and nothing is replaced. */
class FullJournal extends MemoryJournal {
  full = false

  override append(bytes: Uint8Array, length: number): void {
    super.append(bytes, this.full ? Math.floor(length / 2) : length)
    this.#mustHaveRoom()
  }

  override replace(bytes: Uint8Array): void {
    this.#mustHaveRoom()
    super.replace(bytes)
  }

  #mustHaveRoom(): void {
    if (this.full) throw Object.assign(new Error('no space left'), { code: 'ENOSPC' })
  }
}

/** The superblock of transaction `nr`: transaction ids are at byte 48 (docs/FORMAT.md). */
function superblock(nr: number): Buffer {
  const block = Buffer.alloc(4096)
  block.writeUInt32LE(nr, 48)
  return block
}

/** The virtual blocks that a process replays which finds the superblock of transaction `nr`. */
function replayed(content: Buffer, nr: number): number[] {
  const found: number[] = []
  const other = (): void => void t.fail('nothing else was noted')
  replay(new Journal(new MemoryJournal('boot', content)).read(superblock(nr)).changes, {
    map: (_devId, vblock) => void found.push(vblock),
    ...{ unmap: other, markShared: other, extend: other, open: other, close: other, move: other },
  })
  return found
}

function run(seed: number, hasFaults: boolean): void {
  const random = new Random(seed)
  const file = new FullJournal('boot')
  let journal = new Journal(file)
  /** By virtual block: the transaction that runs when it is noted has the number below. */
  const noted: number[] = []
  let acknowledged = new Set<number>()
  /** The last step, where a kill in the middle of it leaves a part of what it appended. */
  let torn: { step: string; from: number; acknowledged: Set<number> } | null = null
  let [durable, sealed] = [1, 1]
  journal.begin(superblock(durable))

  const check = (what: string, content: Buffer, acknowledged: ReadonlySet<number>): void => {
    for (const nr of new Set([durable, sealed])) {
      const found = replayed(content, nr)
      const name = `seed ${seed}: ${what}, superblock ${nr}`
      const isRight = found.every((block, i) => noted[block]! >= nr && block > (found[i - 1] ?? -1))
      if (!isRight) t.fail(`${name}: ${found} are replayed`)
      for (const block of acknowledged) {
        if (noted[block]! < nr || found.includes(block)) continue
        t.fail(`${name}: ${block} was acknowledged and is not replayed`)
      }
    }
  }
  const settle = (): void => {
    try {
      journal.settle()
      for (const block of noted.keys()) acknowledged.add(block)
    } catch {
      // They are acknowledged when a commit has made them durable.
    }
  }
  const steps: Record<string, () => void> = {
    note: () => journal.pending.map(1, noted.push(sealed) - 1, 0, 0),
    settle,
    seal() {
      if (sealed > durable) return
      sealed++
      journal.sealed(superblock(sealed))
    },
    durable() {
      if (sealed === durable) return
      durable = sealed
      journal.durable()
    },
    kill() {
      // A superblock may have reached the disk before the process could note that.
      if (torn?.step !== 'seal' && random.chance(0.5)) durable = sealed
      if (torn !== null) {
        acknowledged = torn.acknowledged
        const kept = random.below(file.content.length - torn.from)
        file.content = file.content.subarray(0, torn.from + kept)
        check(`killed within ${torn.step}`, file.content, acknowledged)
      }
      const found = replayed(file.content, durable)
      journal = new Journal(file)
      const { generation } = journal.read(superblock(durable))
      journal.resume()
      journal.goOnFrom(generation ?? 0)
      // What was replayed is in the transaction that the opening commits.
      for (let block = 0; block < noted.length; block++) {
        if (noted[block]! >= durable && !found.includes(block)) noted[block] = -1
      }
      sealed = Math.max(sealed, durable) + 1
      journal.sealed(superblock(sealed))
      check('killed while opening', file.content, acknowledged)
      durable = sealed
      journal.begin(superblock(durable))
    },
    full: () => {
      file.full = hasFaults && !file.full
    },
  }
  const order = ['note', 'note', 'note', 'settle', 'settle', 'seal', 'durable', 'kill', 'full']
  for (let i = 0; i < 60; i++) {
    const step = random.of(order)
    const [before, told] = [file.content, new Set(acknowledged)]
    steps[step]!()
    torn = null
    check(step, file.content, acknowledged)
    // A kill ends a write half-way, too.
    const added = file.content.length - before.length
    if (added <= 0 || !file.content.subarray(0, before.length).equals(before)) continue
    if (step !== 'kill' && random.chance(0.5)) {
      torn = { step, from: before.length, acknowledged: new Set(told) }
    }
    for (let tear = 0; tear < 4; tear++) {
      const length = before.length + random.below(added)
      check(`${step}, torn at ${length}`, file.content.subarray(0, length), told)
    }
  }
}

t.test('a kill at any moment loses nothing that was acknowledged', async t => {
  for (let seed = 1; seed <= 60; seed++) run(seed, false)
  t.pass()
})

t.test('nor does it where the disk was full', async t => {
  for (let seed = 1; seed <= 120; seed++) run(seed, true)
  t.pass()
})
