// Goal: no caller hears of a success that the death of this process would undo, every reply leaves
// once, and an error of settling goes to those who waited for it and to nobody else. Method: seeded
// schedules of replies, in a batch and later, and of settlings that end at once, later or not well;
// each message to the kernel is held against what was settled at that moment.
import t from 'tap'
import type { FuseDevice } from '../../src/fuse/device.js'
import type { FileSystem } from '../../src/fuse/file-system.js'
import { Replies } from '../../src/fuse/replies.js'
import { Slots } from '../../src/fuse/slots.js'
import { Random } from '../support/random.js'

const EIO = 5
const turn = () => new Promise(resolve => setImmediate(resolve))

/** Changes that are numbered, and lost up to the last one that was settled. */
function makeTested(random: Random) {
  let made = 0
  let settled = 0
  let end: ((err?: Error) => void) | null = null
  const failing: number[] = []
  const fileSystem = {
    get unsettled() {
      return made > settled
    },
    settle() {
      const upTo = made
      const done = (err?: Error): void => {
        // Those who waited get the error; later ones must not wait for these changes.
        settled = upTo
        if (err) failing.push(upTo)
      }
      const how = random.below(4)
      const err = Object.assign(new Error('disk'), { code: 'EIO' })
      if (how === 0) return done()
      if (how === 1) {
        done(err)
        throw err
      }
      return new Promise<void>((resolve, reject) => {
        end = () => {
          end = null
          done(how === 2 ? undefined : err)
          if (how === 2) resolve()
          else reject(err)
        }
      })
    },
  }
  /** By request: the last change that its reply tells of. */
  const tells = new Map<number, number>()
  const sent: { request: number; error: number }[] = []
  const holds: boolean[] = []
  const fatal: unknown[] = []
  const device = {
    slots: null,
    write(buffer: Buffer, at: number) {
      const [error, request] = [-buffer.readInt32LE(at + 4), buffer.readUInt32LE(at + 8)]
      sent.push({ request, error })
      const told = tells.get(request)!
      if (error === 0 && told > settled) t.fail(`request ${request}: ${told} is not settled`)
      return 0
    },
    flush() {},
  } as unknown as FuseDevice
  const slots = new Slots(64, 8)
  const replies = new Replies(slots, {
    device,
    fileSystem: fileSystem as unknown as FileSystem,
    onHold: hold => holds.push(hold),
    onFatal: err => fatal.push(err),
    onSettleError: () => {},
  })
  return {
    ...{ replies, slots, tells, sent, holds, fatal, failing },
    change: () => ++made,
    endSettling: () => end?.(),
  }
}

t.test('replies leave once, and none before what it tells of is settled', async t => {
  for (let seed = 1; seed <= 60; seed++) {
    const random = new Random(seed)
    const tested = makeTested(random)
    const { replies, slots, tells, sent } = tested
    const desk = new Slots(64, 1)
    let request = 0
    const answer = (place: Slots, base: number, isLater: boolean): void => {
      tells.set(++request, random.chance(0.5) ? tested.change() : 0)
      place.setU32(base + 8, request)
      if (isLater) replies.replyLater(place, base, 0, 0)
      else replies.reply(place, base, 0, 0)
    }
    for (let i = 0; i < 12; i++) {
      // A session reads no batch while replies of one wait in its slots.
      if (!replies.held) {
        const count = random.below(4)
        for (let slot = 0; slot < count; slot++) answer(slots, slot * slots.size, false)
        replies.release()
      }
      for (let later = random.below(3); later > 0; later--) answer(desk, 0, true)
      if (random.chance(0.5)) await turn()
      if (random.chance(0.7)) tested.endSettling()
    }
    while (sent.length < request) {
      tested.endSettling()
      await turn()
      if (!replies.held) replies.release()
    }
    await turn()
    t.same(
      sent.map(({ request }) => request).sort((a, b) => a - b),
      [...tells.keys()],
      `seed ${seed}`,
    )
    t.same(tested.fatal, [])
    const errors = sent.filter(({ error }) => error !== 0)
    t.ok(errors.every(({ error }) => error === EIO))
    t.ok(tested.failing.length > 0 || errors.length === 0, 'no error without a failed settling')
    t.not(tested.holds.at(-1), true, 'and requests are read again')
    t.notOk(replies.held)
  }
})
