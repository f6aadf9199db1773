// Goal: a suspended device does nothing, and loses nothing. Method: requests that are under way, or
// come, while its gate is shut.
import t from 'tap'
import type { BlockDevice } from '../../src/device/index.js'
import { GatedDevice } from '../../src/tables/gated-device.js'
import { Table } from '../../src/tables/table.js'
import type { TargetDevice } from '../../src/tables/target-device.js'
import { errno, get, put } from '../support/tables.js'

const SIZE = 64 * 1024

/** A target in memory whose writes wait for `end`, and which tells what it was asked. */
class SlowTarget implements TargetDevice {
  readonly size = SIZE
  readonly gone = false
  readonly bytes = Buffer.alloc(SIZE)
  readonly asked: string[] = []
  #ends: (() => void)[] = []

  read(offset: number, size: number, buffer: Uint8Array, at: number): boolean {
    this.asked.push('read')
    buffer.set(this.bytes.subarray(offset, offset + size), at)
    return true
  }

  write(offset: number, size: number, buffer: Uint8Array, at: number): Promise<void> {
    this.asked.push('write')
    const held = Buffer.from(buffer.subarray(at, at + size))
    return new Promise<void>(resolve => this.#ends.push(resolve)).then(() => {
      this.bytes.set(held, offset)
    })
  }

  async readLater(offset: number, size: number, buffer: Uint8Array, at: number): Promise<void> {
    this.read(offset, size, buffer, at)
  }

  discard(): void {}
  zero(): void {}
  check(): void {}
  nextData = (offset: number): number => offset
  nextHole = (): number => SIZE

  async flush(): Promise<void> {
    this.asked.push('flush')
  }

  async close(): Promise<void> {
    this.asked.push('close')
  }

  end(): void {
    for (const end of this.#ends.splice(0)) end()
  }
}

async function device(): Promise<{ device: GatedDevice; target: SlowTarget }> {
  const device = new GatedDevice(0)
  const target = new SlowTarget()
  await device.load(new Table([target], false))
  await device.resume()
  return { device, target }
}

/** Whether it has settled when everything that can go on has. */
async function isSettled(promise: Promise<unknown>): Promise<boolean> {
  let settled = false
  promise.then(
    () => {
      settled = true
    },
    () => {
      settled = true
    },
  )
  for (let i = 0; i < 5; i++) await new Promise(resolve => setImmediate(resolve))
  return settled
}

t.test('a suspension waits for what is under way, and flushes after it', async t => {
  const { device: gated, target } = await device()
  const written = put(gated, 0, Buffer.from('under way'))
  const suspended = gated.suspend(true)
  t.notOk(await isSettled(suspended))
  target.end()
  await suspended
  await written
  t.same(target.asked, ['write', 'flush'])
  t.ok(gated.isSuspended)
  await gated.suspend(true)
  t.same(target.asked, ['write', 'flush'], 'once more changes nothing')
})

t.test('what comes later waits, and goes to the table that serves then', async t => {
  const { device: gated, target } = await device()
  await gated.suspend(false)
  const buffer = Buffer.from('later')
  const written = put(gated as BlockDevice, 4, buffer)
  buffer.fill(0)
  const read = get(gated, 0, 16)
  const flushed = gated.flush()
  t.notOk(await isSettled(Promise.race([written, read, flushed])))
  t.same(target.asked, [])
  const next = new SlowTarget()
  next.bytes.fill('n')
  await gated.load(new Table([next], false))
  await gated.resume()
  t.notOk(await isSettled(written))
  next.end()
  await Promise.all([written, flushed])
  t.equal((await read).length, 16)
  t.equal(next.bytes.toString('latin1', 0, 12), 'nnnnlaternnn', 'with the bytes of then')
  t.same(target.asked, ['close'])
})

t.test('what waits for a device that is removed fails', async t => {
  const { device: gated } = await device()
  await gated.suspend(false)
  const waiting = [put(gated, 0, Buffer.from('x')), get(gated, 0, 1), gated.flush()]
  const ends = Promise.allSettled(waiting)
  await gated.close()
  for (const { status } of await ends) t.equal(status, 'rejected')
  await t.rejects(async () => put(gated, 0, Buffer.from('x')), errno('EIO'))
})

t.test('a device without a table fails what is not a flush', async t => {
  const gated = new GatedDevice(0)
  await gated.flush()
  await t.rejects(async () => get(gated, 0, 1), errno('EIO'))
  await t.rejects(async () => put(gated, 0, Buffer.from('x')), errno('EIO'))
})

t.test('a table that was loaded and is not used is closed', async t => {
  const { device: gated, target } = await device()
  const unused = new SlowTarget()
  await gated.load(new Table([unused], false))
  await gated.load(new Table([new SlowTarget()], false))
  t.same(unused.asked, ['close'])
  await gated.clear()
  await gated.resume()
  t.same(target.asked, [])
})
