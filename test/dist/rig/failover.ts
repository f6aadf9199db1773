/**
 * What holds for a pool that one of two hosts has at a time, wherever it is kept: what was flushed
 * is there for the next host, and the one before cannot do any harm.
 *
 * Each test has a pool of its own, and two hosts that have just booted.
 */
import type { Test } from 'tap'
import { until } from '../../support/mounted-pool.js'
import type { Host, Machine } from './machine.js'
import { PoolOn } from './pool-on.js'
import { shown } from './sum.js'
import { Ledger, type Writer } from './writers.js'

/** Machines, and the cables by which they reach the storage. */
export interface Cables<M extends Host> {
  /** Starts a machine. It ends with the test. */
  machine(t: Test, name: string): Promise<M>
  /** Whatever the machine sends, or is sent, is lost. */
  cut(machine: M): Promise<void>
  heal(machine: M): Promise<void>
}

/** Where pools are kept. */
export interface Storage<M extends Host = Machine> {
  /** Makes a pool, which no host has. @returns its folder, as both hosts see it */
  makePool(name: string, hosts: [M, M]): Promise<string>
  /** Makes the storage reachable on a host that has booted. */
  prepare(host: M): Promise<void>
  /** Mounts a pool that another host has had, and may think that it has still. */
  takeOver(pool: PoolOn<M>): Promise<void>
  /** What a host is told that wants a pool which host `a` serves. */
  inUse: RegExp
  /** Makes thin_check judge the metadata of a pool that nobody has mounted. */
  thinCheck(pool: PoolOn<M>): Promise<void>
}

export interface Hosts<M extends Host = Machine> {
  network: Cables<M>
  a: PoolOn<M>
  b: PoolOn<M>
  ledger: Ledger
  takeOver(pool: PoolOn<M>): Promise<void>
  inUse: RegExp
}

/** What a test has shown, and who has the pool in the end. */
export interface Outcome<M extends Host = Machine> {
  failovers: number
  pause: number
  last: PoolOn<M>
}

export type Scenario<M extends Host = Machine> = (t: Test, hosts: Hosts<M>) => Promise<Outcome<M>>

const scenarios = <M extends Host>(): Readonly<Record<string, Scenario<M>>> => ({
  async 'a writer is cut off, and its host comes back'(t, { network, a, b, ledger, takeOver }) {
    const first = ledger.write(a)
    await first.progress()
    await network.cut(a.machine)
    await takeOver(b)
    const second = ledger.write(b)
    await second.progress()
    t.not((await first.ended).error, null, 'the first host notices')
    t.match(await a.status(), { mount: { mountPoint: String } }, 'commands do not depend on it')
    await network.heal(a.machine)
    await mustHaveLost(t, a, ledger)
    return goOn(t, { a, b, first, second })
  },

  async 'an idle host is cut off, and comes back'(t, { network, a, b, ledger, takeOver }) {
    const first = await wrote(ledger, a)
    await network.cut(a.machine)
    await takeOver(b)
    const second = ledger.write(b)
    await second.progress()
    await network.heal(a.machine)
    await mustHaveLost(t, a, ledger)
    return goOn(t, { a, b, first, second })
  },

  async 'an idle host comes back, and its engine is killed'(t, hosts) {
    const { network, a, b, ledger, takeOver } = hosts
    const first = await wrote(ledger, a)
    // Nothing of thinfs runs there meanwhile, as when a machine is suspended.
    const { pid, enginePid } = (await a.status()).mount!
    await a.machine.kill('STOP', pid!, enginePid)
    await network.cut(a.machine)
    await takeOver(b)
    const second = ledger.write(b)
    await second.progress()
    await network.heal(a.machine)
    await a.machine.kill('KILL', enginePid)
    await a.machine.kill('CONT', pid!)
    await mustHaveLost(t, a, ledger)
    return goOn(t, { a, b, first, second })
  },

  async 'an engine is stopped while another host takes over'(t, hosts) {
    const { network, a, b, ledger, takeOver } = hosts
    const first = ledger.write(a)
    await first.progress()
    const { enginePid } = (await a.status()).mount!
    await a.machine.kill('STOP', enginePid)
    await network.cut(a.machine)
    await takeOver(b)
    const second = ledger.write(b)
    await second.progress()
    await network.heal(a.machine)
    await a.machine.kill('CONT', enginePid)
    t.not((await first.ended).error, null, 'the first host notices')
    await mustHaveLost(t, a, ledger)
    return goOn(t, { a, b, first, second })
  },

  async 'engines are killed under a writer'(t, { a, ledger }) {
    const writer = ledger.write(a)
    for (let i = 0; i < 5; i++) {
      await writer.progress()
      await killEngine(a)
    }
    await writer.progress()
    const { error, longestPause } = await writer.stop()
    t.equal(error, null)
    return { failovers: 0, pause: longestPause, last: a }
  },

  async 'an engine is killed, and nothing was flushed'(_t, { a, ledger }) {
    await ledger.fill(a, 'settled')
    await killEngine(a)
    return { failovers: 0, pause: 0, last: a }
  },

  async 'engine and daemon are killed, and another host takes over'(t, hosts) {
    return diesAndIsReplaced(t, hosts, hosts.takeOver)
  },

  async 'engine and daemon are killed, and another host mounts the pool'(t, hosts) {
    return diesAndIsReplaced(t, hosts, pool => pool.mount())
  },

  async 'a host loses its power'(t, { network, a, b, ledger, takeOver }) {
    const first = ledger.write(a)
    await first.progress()
    // Nobody is told of the end of its connections.
    await network.cut(a.machine)
    await a.machine.powerOff()
    await first.ended.catch(() => {})
    await takeOver(b)
    const second = ledger.write(b)
    await second.progress()
    t.equal((await second.stop()).error, null)
    return { failovers: 1, pause: Ledger.pauseBetween(first, second), last: b }
  },

  async 'another host mounts a pool that is served'(t, { a, b, ledger, inUse }) {
    const writer = ledger.write(a)
    await writer.progress()
    t.match(await b.attemptMount('--wait', '0'), { status: 1, stderr: inUse })
    await writer.progress()
    const { error, longestPause } = await writer.stop()
    t.equal(error, null, 'the host that has it is not disturbed')
    return { failovers: 0, pause: longestPause, last: a }
  },
})

/** Resolves when another engine serves. */
export async function killEngine(pool: PoolOn<Host>): Promise<void> {
  const { enginePid } = (await pool.status()).mount!
  await pool.machine.kill('KILL', enginePid)
  await until(async () => (await pool.status()).mount!.enginePid !== enginePid)
}

/** Kills engine and daemon under a writer. Resolves when the writer was told. */
export async function killAll(t: Test, pool: PoolOn<Host>, writer: Writer): Promise<void> {
  const { pid, enginePid } = (await pool.status()).mount!
  await pool.machine.kill('KILL', pid!, enginePid)
  t.not((await writer.ended).error, null, 'the mount has ended')
}

/** Nothing of the pool runs on the first host any more, and its storage is not told. */
async function diesAndIsReplaced<M extends Host>(
  t: Test,
  { a, b, ledger }: Hosts<M>,
  mount: (pool: PoolOn<M>) => Promise<void>,
): Promise<Outcome<M>> {
  const first = ledger.write(a)
  await first.progress()
  await killAll(t, a, first)
  await mount(b)
  const second = ledger.write(b)
  await second.progress()
  return goOn(t, { a, b, first, second })
}

/**
 * Three servers have all of the storage each. One of them is not missed; with one of three nothing
 * is acknowledged, and nothing is wrong.
 */
export async function serversDie(
  t: Test,
  { a, ledger }: Hosts,
  servers: { kill(index: number): Promise<void>; start(): Promise<void> },
): Promise<Outcome> {
  const first = ledger.write(a)
  await first.progress()
  await servers.kill(2)
  await first.progress()
  await servers.kill(1)
  const { error, longestPause } = await first.ended
  t.not(error, null, `with one of three: ${error?.errno}`)
  await servers.start()
  await a.endMount()
  await a.mount()
  const next = ledger.write(a)
  await next.progress()
  t.equal((await next.stop()).error, null)
  return { failovers: 0, pause: longestPause, last: a }
}

/** What a host has flushed before it had nothing more to do. */
async function wrote(ledger: Ledger, pool: PoolOn<Host>): Promise<Writer> {
  const writer = ledger.write(pool)
  await writer.progress()
  await writer.stop()
  return writer
}

/** A host that lost the pool: every write fails, and its status says why. */
export async function mustHaveLost(t: Test, pool: PoolOn<Host>, ledger: Ledger): Promise<void> {
  t.equal(await pool.errnoOfWrite(ledger.staleNumber()), 'EIO', 'a write of the first host')
  const { mode, reason } = await pool.status()
  t.equal(mode, 'fail', `its status: ${reason}`)
}

/** The second host goes on, also when the first one has ended its mount. */
export async function goOn<M extends Host>(
  t: Test,
  { a, b, first, second }: { a: PoolOn<M>; b: PoolOn<M>; first: Writer; second: Writer },
): Promise<Outcome<M>> {
  await second.progress()
  await a.endMount()
  await second.progress()
  t.equal((await second.stop()).error, null, 'the second host is not disturbed')
  t.match(await b.status(), { mode: 'write', mount: { mountPoint: String } })
  await b.thinfs('snapshot', b.folder, 'web', 'after')
  return { failovers: 1, pause: Ledger.pauseBetween(first, second), last: b }
}

/**
 * Runs all of them, or those whose names, `GROUP: CASE`, match `THINFS_DIST_ONLY`.
 * @param more what else is to be shown, of this storage alone, or in the place of one of them
 */
export async function failoverSuite<M extends Host = Machine>(
  t: Test,
  network: Cables<M>,
  storage: Storage<M>,
  more: Readonly<Record<string, Scenario<M>>> = {},
): Promise<void> {
  const [one, other] = [await network.machine(t, 'a'), await network.machine(t, 'b')]
  const only = new RegExp(process.env.THINFS_DIST_ONLY ?? '')
  let nr = 0
  for (const [name, scenario] of Object.entries({ ...scenarios<M>(), ...more })) {
    if (!only.test(`${t.name}: ${name}`)) continue
    await t.test(name, async t => {
      for (const host of [one, other]) {
        await host.reboot()
        await storage.prepare(host)
      }
      const folder = await storage.makePool(`pool${++nr}`, [one, other])
      const [a, b] = [new PoolOn(one, folder), new PoolOn(other, folder)]
      await a.mount()
      const ledger = new Ledger(t.testdir())
      const takeOver = (pool: PoolOn<M>): Promise<void> => storage.takeOver(pool)
      const { last, ...what } = await scenario(t, {
        network,
        a,
        b,
        ledger,
        takeOver,
        inUse: storage.inUse,
      })
      // From the storage, not from what the host remembers.
      await last.umount()
      await last.mount()
      const found = await ledger.verify(t, last)
      await last.umount()
      await storage.thinCheck(last)
      t.match(await last.attemptThinfs('check', folder, '--deep'), { status: 0, stderr: '' })
      shown(t, { ...what, ...found })
    })
  }
}
