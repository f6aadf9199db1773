// Goal: what is kept of a journal in memory is never older than what the memory says. Method: a
// keeper that remembers what it was given last.
import { closeSync } from 'node:fs'
import t from 'tap'
import { type JournalKeeper, MemoryJournal } from '../../src/storage/memory-journal.js'

class Keeper implements JournalKeeper {
  journal: Buffer | null = null
  readonly journalMax = 100

  async keepJournal(content: Uint8Array): Promise<void> {
    this.journal = Buffer.from(content)
  }
}

t.test('the next mount begins with what was kept, and not with less than the truth', async t => {
  const keeper = new Keeper()
  const memories = [MemoryJournal.create(), MemoryJournal.create(), MemoryJournal.create()]
  t.teardown(() => {
    for (const fd of memories) closeSync(fd)
  })
  const first = new MemoryJournal(memories[0]!, keeper)
  t.equal(first.isMissing, true, 'nothing was ever kept')
  first.replace(Buffer.from('closed in order'))
  await first.sync()

  const second = new MemoryJournal(memories[1]!, keeper)
  t.equal(second.isMissing, false)
  t.same(second.readAll(), Buffer.from('closed in order'))
  second.replace(Buffer.from('in use'))
  await second.sync()
  t.same(keeper.journal, Buffer.from('in use'))
  second.replace(Buffer.alloc(keeper.journalMax + 1, 'long'))
  await second.sync()

  // It is not known how that mount ended. Whatever was kept before is not so any more.
  const third = new MemoryJournal(memories[2]!, keeper)
  t.equal(third.isMissing, false)
  t.same(third.readAll(), Buffer.alloc(0))
})
