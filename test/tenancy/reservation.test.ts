// Goal: of the hosts that share a pool's disks one at a time is its tenant, whoever takes over from
// whom, and whatever comes between. Method: disks as SPC-4 describes reservations, in memory; the
// real ones are in test/kernel/lun.ktest.ts.
import fc from 'fast-check'
import t from 'tap'
import {
  type Reservable,
  Reservation,
  type ReservationKey,
  reservationKey,
} from '../../src/tenancy/reservation.js'

const keyOf = (letter: string): ReservationKey => reservationKey(letter.repeat(32))

/** A disk. Source: SPC-4, 5.13, type "write exclusive, registrants only". */
class Disk {
  readonly keys = new Map<string, ReservationKey>()
  holder: string | null = null

  takesWritesOf(host: string): boolean {
    return this.holder === null || this.keys.has(host)
  }

  /**
   * The disk as a host has it.
   * @param tells false: as an NVMe disk, which does not say who has it
   * @param before called before each command
   */
  of(host: string, tells = true, before: () => Promise<void> = async () => {}): Reservable {
    const disk = this
    const knows = (key: ReservationKey): boolean => disk.keys.get(host) === key
    return {
      path: '/dev/disk',
      async register(key) {
        await before()
        if (key !== 0n) return void disk.keys.set(host, key)
        disk.keys.delete(host)
        if (disk.holder === host) disk.holder = null
      },
      async reserve(key) {
        await before()
        if (!knows(key) || (disk.holder !== null && disk.holder !== host)) return false
        disk.holder = host
        return true
      },
      async preempt(key, victim) {
        await before()
        const victims = [...disk.keys].filter(([, other]) => other === victim)
        if (!knows(key) || victims.length === 0) return false
        for (const [other] of victims) {
          disk.keys.delete(other)
          if (disk.holder === other) disk.holder = host
        }
        return true
      },
      async release(key) {
        await before()
        if (!knows(key)) return
        disk.keys.delete(host)
        if (disk.holder === host) disk.holder = null
      },
      async holder() {
        await before()
        if (!tells) return undefined
        return disk.holder === null ? null : disk.keys.get(disk.holder)!
      },
      async dropCache() {
        await before()
      },
    }
  }
}

const [A, B, C] = [keyOf('a'), keyOf('b'), keyOf('c')]
const free = { recorded: null, takesAny: false }
const over = { recorded: A, takesAny: false }

for (const tells of [true, false]) {
  t.test(tells ? 'disks that tell who has them' : 'disks that do not', async t => {
    const pool = (): [Disk, Disk] => [new Disk(), new Disk()]
    const of = (disks: Disk[], host: string) => disks.map(disk => disk.of(host, tells))

    t.test('the first has them, the next takes over from the one in the record', async t => {
      const disks = pool()
      const a = await Reservation.acquire(of(disks, 'a'), { key: A, ...free })
      await a.confirm()
      const refused = { code: 'POOL_IN_USE', message: /another host has reserved it/ }
      await t.rejects(Reservation.acquire(of(disks, 'b'), { key: B, ...free }), refused)
      t.notOk(disks[0].takesWritesOf('b'), 'who is refused is not registered')
      await a.confirm()

      const b = await Reservation.acquire(of(disks, 'b'), { key: B, ...over })
      await b.confirm()
      await t.rejects(a.confirm(), { code: 'FENCED', message: '/dev/disk: ' })
      await a.release()
      for (const disk of disks) t.same([disk.holder, disk.takesWritesOf('a')], ['b', false])
      await t.rejects(a.confirm(), { code: 'FENCED' }, 'lost for good')
    })

    t.test('an engine that comes later confirms what the daemon has', async t => {
      const disks = pool()
      await Reservation.acquire(of(disks, 'a'), { key: A, ...free })
      await Reservation.of(of(disks, 'a'), A).confirm()
      await t.rejects(Reservation.of(of(disks, 'a'), C).confirm(), { code: 'FENCED' })
    })

    t.test('what a tenant leaves: nothing, unless the disk was reserved when it came', async t => {
      const disks = pool()
      await (await Reservation.acquire(of(disks, 'a'), { key: A, ...free })).release()
      for (const disk of disks) t.same([disk.holder, disk.keys.size], [null, 0])

      await Reservation.acquire(of(disks, 'a'), { key: A, ...free })
      await (await Reservation.acquire(of(disks, 'b'), { key: B, ...over })).release()
      t.notOk(disks[0].takesWritesOf('a'), 'the one that hung stays out')
      await Reservation.acquire(of(disks, 'c'), { key: C, recorded: B, takesAny: false })
      for (const disk of disks) t.equal(disk.holder, 'c')
    })

    t.test('a host that was killed comes again and need not ask', async () => {
      const disks = pool()
      await Reservation.acquire(of(disks, 'a'), { key: A, ...free })
      const again = await Reservation.acquire(of(disks, 'a'), { key: C, ...free })
      await again.confirm()
    })

    t.test('another host has one of them: the others are given back', async t => {
      const disks = pool()
      await Reservation.acquire(of(disks.slice(1), 'a'), { key: A, ...free })
      await t.rejects(Reservation.acquire(of(disks, 'b'), { key: B, ...free }), {
        code: 'POOL_IN_USE',
      })
      t.same([disks[0].holder, disks[0].keys.size, disks[1].holder], [null, 0, 'a'])
    })

    t.test('two take over from one at a time, in whatever order: one of them has it', () =>
      fc.assert(
        fc.asyncProperty(fc.scheduler(), async scheduler => {
          const disks = pool()
          await Reservation.acquire(of(disks, 'a'), { key: A, ...free })
          const step = () => scheduler.schedule(Promise.resolve())
          const tries = (['b', 'c'] as const).map(host =>
            Reservation.acquire(
              disks.map(disk => disk.of(host, tells, step)),
              { key: host === 'b' ? B : C, ...over },
            ),
          )
          const ended = Promise.allSettled(tries)
          await scheduler.waitFor(ended)
          const winners = (await ended).map(({ status }) => status === 'fulfilled')
          const [winner, loser] = winners[0] ? ['b', 'c'] : ['c', 'b']
          return (
            winners[0] !== winners[1] &&
            disks.every(({ holder }) => holder === winner) &&
            !disks.some(disk => disk.takesWritesOf(loser!) || disk.takesWritesOf('a'))
          )
        }),
      ),
    )
  })
}

t.test('a take-over that did not end: who has the disk is not in the record', async t => {
  const disks = [new Disk(), new Disk()]
  const of = (host: string) => disks.map(disk => disk.of(host))
  await Reservation.acquire(of('a'), { key: A, ...free })
  const [one] = of('b')
  const broken = { ...disks[1]!.of('b'), register: () => Promise.reject(new Error('no way there')) }
  await t.rejects(Reservation.acquire([one!, broken], { key: B, ...over }), {
    message: 'no way there',
  })
  t.equal(disks[0]!.holder, 'b', 'the one before stays out')
  await t.rejects(Reservation.acquire(of('c'), { key: C, ...over }), {
    code: 'POOL_IN_USE',
    message: `key 0x${B.toString(16)}, which`,
  })
  await Reservation.acquire(of('c'), { key: C, recorded: A, takesAny: true })
  for (const disk of disks) t.equal(disk.holder, 'c')
})
