// Goal: an older copy of volumes.json in the place of the right one costs no byte, whatever is done
// next. Method: a copy put back after volumes grew, went, and gave their ids to others; the content
// of every device compared with what was written.
import { copyFileSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { MIB } from '../../src/base/index.js'
import type { PoolConfig } from '../../src/config/index.js'
import { openPool, type Volumes } from '../../src/volumes/index.js'
import { makePool } from '../support/pool-files.js'

const BLOCK = 65536

const fileOf = ({ folder }: PoolConfig): string => join(folder, 'volumes.json')

/** A pool with the volume `web` of two blocks, and the copy of its names. */
async function poolWithCopy(folder: string) {
  const config = await makePool(folder)
  const copy = join(folder, 'copy')
  const { volumes, close } = await openPool(config)
  await volumes.newVolumes.make('web', 2 * BLOCK)
  return { config, copy, volumes, close }
}

async function fill(volumes: Volumes, name: string, block: number, value: number): Promise<void> {
  const { device } = volumes.find(name)!
  await device.write(block * BLOCK, BLOCK, Buffer.alloc(BLOCK, value), 0)
}

async function byteAt(volumes: Volumes, name: string, block: number): Promise<number> {
  const found = Buffer.alloc(1)
  await volumes.find(name)!.device.readLater(block * BLOCK, 1, found, 0)
  return found[0]!
}

t.test('a volume that has grown since keeps what it has, and its size shows it', async t => {
  const { config, copy, volumes, close } = await poolWithCopy(t.testdir())
  copyFileSync(fileOf(config), copy)
  await volumes.resize({ name: 'web', size: MIB })
  await volumes.resize({ name: 'web', size: 2 * MIB })
  await fill(volumes, 'web', 12, 7)
  await close()
  copyFileSync(copy, fileOf(config))

  const again = await openPool(config)
  t.equal(again.volumes.find('web')!.device.size, 13 * BLOCK, 'as much as it maps')
  await again.volumes.resize({ name: 'web', size: 2 * MIB })
  t.equal(await byteAt(again.volumes, 'web', 12), 7, 'after the administrator corrected the size')
  await again.close()
})

t.test('a device that is younger than the copy is not taken for an earlier one', async t => {
  const { config, copy, volumes, close } = await poolWithCopy(t.testdir())
  const web = volumes.find('web')!
  volumes.opened(web, 1)
  await volumes.namespace.unlink('web')
  // The name is gone, the space follows when it is closed.
  copyFileSync(fileOf(config), copy)
  volumes.released(web, 1)
  while (volumes.byDevId(web.devId)) await new Promise(resolve => setImmediate(resolve))
  await volumes.create({ name: 'other', size: 2 * BLOCK, devId: web.devId })
  await volumes.create({ name: 'more', size: BLOCK })
  await fill(volumes, 'other', 1, 9)
  await close()
  copyFileSync(copy, fileOf(config))

  const again = await openPool(config)
  const name = `thin-${web.devId}`
  t.ok(again.volumes.find(name), 'it has no name that is known')
  t.equal(await byteAt(again.volumes, name, 1), 9)
  await again.close()
  const last = await openPool(config)
  t.equal(await byteAt(last.volumes, name, 1), 9, 'nothing was reclaimed')
  await last.close()
})

t.test('a message that was giving the pool an id far away makes no copy of the names', async t => {
  const { config, volumes, close } = await poolWithCopy(t.testdir())
  await fill(volumes, 'web', 1, 5)
  const before = volumes.pool.metadata.transactionId
  for (const [from, to] of [
    [before, 900],
    [900, 3],
  ] as const) {
    await volumes.message({ message: `set_transaction_id ${from} ${to}` })
  }
  await close()
  // As it is when the last step is missing.
  const table = JSON.parse(readFileSync(fileOf(config), 'utf8'))
  writeFileSync(fileOf(config), JSON.stringify({ ...table, transaction_id: 900, jump: 3 }))
  const warnings: string[] = []
  const again = await openPool(config, { onWarning: what => warnings.push(what) })
  t.same(warnings, [])
  t.equal(await byteAt(again.volumes, 'web', 1), 5)
  await again.close()
})
