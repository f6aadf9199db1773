// Goal: each wait for space ends once, for the reason that came first: space, time, its caller, or
// its owner's end. Method: seeded schedules of all that can happen to the queue, against a plain
// list.
import t from 'tap'
import { SpaceQueue } from '../../src/pool/space-queue.js'
import { TestClock } from '../support/memory-pool.js'
import { Random } from '../support/random.js'

/** A minute, as the kernel's no_space_timeout. */
const TIMEOUT = 60_000
const STEPS = ['wait', 'wake', 'retry', 'cancel', 'abort', 'limit', 'pass'] as const
const OWNERS = [{ name: 'web' }, { name: 'db' }]
const turn = () => new Promise(resolve => setImmediate(resolve))

interface Wait {
  owner: object
  abort: AbortController
  /** By the list. */
  expected: string | null
  /** By the queue. */
  found: string[]
}

/** What happens to one queue, and to a list of who waits in it. */
class Tested {
  readonly #clock = new TestClock()
  readonly queue = new SpaceQueue(this.#clock, TIMEOUT)
  readonly waits: Wait[] = []
  /** When all of them fail; null while no clock runs. */
  #deadline: number | null = null
  #now = 0
  #timeout = TIMEOUT
  expired = false

  get #waiting(): Wait[] {
    return this.waits.filter(({ expected }) => expected === null)
  }

  #end(waits: Wait[], outcome: string): void {
    for (const wait of waits) wait.expected = outcome
  }

  /** Ends some waits with an error. Without any left the clock stops. */
  #fail(isOne: (wait: Wait) => boolean, outcome: string): void {
    this.#end(this.#waiting.filter(isOne), outcome)
    if (this.#waiting.length === 0) this.#deadline = null
  }

  wait(owner: object): void {
    const wait: Wait = { owner, abort: new AbortController(), expected: null, found: [] }
    this.waits.push(wait)
    this.#startClock()
    this.queue.wait(owner, 4096, wait.abort.signal).then(
      () => wait.found.push('space'),
      err => wait.found.push(err.message),
    )
  }

  #startClock(): void {
    if (this.#timeout > 0) this.#deadline ??= this.#now + this.#timeout
  }

  /** Those that wait have all of the new time before them. */
  limit(ms: number): void {
    this.#timeout = ms
    this.#deadline = null
    if (this.#waiting.length > 0) this.#startClock()
    this.queue.timeout = ms
  }

  wake(): void {
    this.#end(this.#waiting, 'space')
    this.#deadline = null
    this.expired = false
    this.queue.wake()
  }

  /** The clock runs on: a caller that waits again has what is left of its minute. */
  retry(): void {
    this.#end(this.#waiting, 'space')
    this.queue.retry()
  }

  cancel(owner: object): void {
    this.#fail(wait => wait.owner === owner, 'deleted')
    this.queue.cancel(owner, new Error('deleted'))
  }

  abort(random: Random): void {
    const waiting = this.#waiting
    if (waiting.length === 0) return
    const one = random.of(waiting)
    this.#fail(wait => wait === one, 'signal')
    one.abort.abort(new Error('signal'))
  }

  pass(ms: number): void {
    this.#now += ms
    if (this.#deadline !== null && this.#now >= this.#deadline) {
      this.#deadline = null
      if (this.#waiting.length > 0) this.expired = true
      this.#end(this.#waiting, `no space came within ${this.#timeout / 1000} s`)
    }
    this.#clock.advance(ms)
  }

  async check(name: string): Promise<void> {
    await turn()
    for (const [i, { expected, found }] of this.waits.entries()) {
      t.same(found, expected === null ? [] : [expected], `${name}: wait ${i}`)
    }
    t.equal(this.queue.length, this.#waiting.length, `${name}: length`)
    t.equal(this.queue.expired, this.expired, `${name}: expired`)
    for (const owner of OWNERS) {
      const count = this.#waiting.filter(wait => wait.owner === owner).length
      t.equal(this.queue.lengthOf(owner), count, `${name}: of ${owner.name}`)
    }
  }
}

t.test('each wait ends once, for the reason that came first', async () => {
  for (let seed = 1; seed <= 12; seed++) {
    const random = new Random(seed)
    const tested = new Tested()
    for (let i = 0; i < 25; i++) {
      const step = random.of([...STEPS, 'wait', 'wait'])
      if (step === 'wait') tested.wait(random.of(OWNERS))
      else if (step === 'cancel') tested.cancel(random.of(OWNERS))
      else if (step === 'abort') tested.abort(random)
      else if (step === 'limit') tested.limit(random.of([0, 1000, TIMEOUT]))
      else if (step === 'pass') tested.pass(random.of([1000, 20_000, 59_999]))
      else tested[step as 'wake' | 'retry']()
      await tested.check(`seed ${seed}, ${i}: ${step}`)
    }
  }
})

t.test('an owner may have a time of its own', async t => {
  const clock = new TestClock()
  const queue = new SpaceQueue(clock, TIMEOUT)
  const [web, db] = [{}, {}]
  const ended: string[] = []
  const wait = (owner: object, name: string): void =>
    void queue.wait(owner, 1).then(
      () => ended.push(`${name} space`),
      err => ended.push(`${name} ${err.message}`),
    )
  const pass = async (ms: number): Promise<void> => {
    clock.advance(ms)
    await turn()
  }
  queue.setTimeoutOf(web, 5000)
  wait(web, 'web')
  wait(db, 'db')
  await pass(5000)
  t.same(ended.splice(0), ['web no space came within 5 s'])
  t.same([queue.hasExpiredFor(web), queue.hasExpiredFor(db), queue.expired], [true, false, false])
  await pass(TIMEOUT - 5000)
  t.same(ended.splice(0), ['db no space came within 60 s'])
  queue.wake()
  t.notOk(queue.hasExpiredFor(web) || queue.expired, 'space came')
  wait(web, 'web')
  queue.setTimeoutOf(web, 0)
  await pass(10 * TIMEOUT)
  t.same(ended, [], 'for ever')
  queue.setTimeoutOf(web, null)
  await pass(TIMEOUT - 1)
  t.same(ended, [])
  await pass(1)
  t.same(ended, ['web no space came within 60 s'])
})

t.test('waits keep no more than 128 MiB in memory', async t => {
  const queue = new SpaceQueue(new TestClock(), TIMEOUT)
  const first = queue.wait({}, 128 * 2 ** 20)
  await t.rejects(queue.wait({}, 1), {
    code: 'NO_DATA_SPACE',
    message: 'too many writes wait for space',
  })
  queue.wake()
  await first
  const again = queue.wait({}, 1)
  queue.wake()
  await again
})
