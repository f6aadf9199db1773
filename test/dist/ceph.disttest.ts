// Goal: an image of a real Ceph cluster is a disk that one host alone writes to, whatever becomes
// of the hosts. Method: a cluster in a network namespace, hosts as processes in and outside of it;
// what they wrote is read by rbd.
import t, { type Test } from 'tap'
import { KIB, MIB } from '../../src/base/index.js'
import { CephClient, RbdDisk } from '../../src/ceph/index.js'
import { mixed, mustBeHoles } from '../support/disk-mix.js'
import { Random } from '../support/random.js'
import { CephRig, lacksCeph, POOL } from './rig/ceph.js'
import { RbdHost } from './rig/rbd-host.js'

const SIZE = 64 * MIB
const PAGE = 4 * KIB
const lacks = lacksCeph()

t.test('an image of a Ceph cluster', { skip: process.env.CI ? false : lacks }, async t => {
  const ceph = await CephRig.start(t, { osds: 3 })
  await ceph.addUser('host')
  const { conf } = ceph
  let nr = 0
  /** Makes two images, and hosts that have them open. */
  const hosts = async (t: Test, ...where: ('inside' | 'outside')[]): Promise<RbdHost[]> => {
    nr++
    for (const name of [`data${nr}`, `metadata${nr}`]) await ceph.createImage(name, '64M')
    return Promise.all(where.map(one => another(t, one)))
  }
  /** One more host with the images that were made last. */
  const another = async (t: Test, where: 'inside' | 'outside'): Promise<RbdHost> => {
    const host = await RbdHost.start(t, where === 'inside' ? ceph.netns : null)
    await host.ask('open', conf, 'host', `data${nr}`, `metadata${nr}`)
    return host
  }

  await t.test('what is written is there, and rbd reads it', async t => {
    await ceph.createImage('disk', '64M')
    const client = await CephClient.connect({ conf, user: 'host' })
    const name = { pool: POOL, namespace: '', image: 'disk', text: 'rbd:thin/disk' }
    let tell = (_size: number): void => {}
    const resized = new Promise<number>(resolve => {
      tell = resolve
    })
    const disk = await RbdDisk.open(client, name, { onResized: size => tell(size) })
    await disk.lock()
    t.same(await disk.extents(0, SIZE), [], 'nothing at first')
    const random = new Random(1)
    const model = Buffer.alloc(SIZE)
    for (let round = 0; round < 6; round++) {
      await mixed(t, disk, model, random, { inFlight: 16, mostPages: 64 })
    }
    await disk.flush()
    for (const { offset, length } of [
      { offset: 0, length: 4 * MIB },
      { offset: 20 * MIB, length: PAGE },
    ]) {
      model.fill(0, offset, offset + length)
      await disk.zero(offset, length)
    }
    const extents = (await disk.extents(0, SIZE))!
    mustBeHoles(t, model, extents)
    t.equal(extents[0]!.offset, 4 * MIB, 'an object that was zeroed is none')
    await ceph.run('rbd', 'resize', '--no-progress', '--size', '128M', `${POOL}/disk`)
    t.equal(await resized, 2 * SIZE, 'a resize is noticed')
    await disk.end()
    await client.close()
    const file = `${ceph.folder}/disk`
    await ceph.run('rbd', 'export', '--no-progress', `${POOL}/disk`, file)
    const found = await import('node:fs').then(fs => fs.readFileSync(file))
    t.ok(found.subarray(0, SIZE).equals(model), 'as rbd reads it')
  })

  await t.test('a second host is refused, and told who has it', async t => {
    const [here, there] = (await hosts(t, 'outside', 'inside')) as [RbdHost, RbdHost]
    const address = await here.ask<string>('acquire', null)
    t.match(await ceph.run('rbd', 'lock', 'ls', `${POOL}/data${nr}`), address, 'rbd knows it too')
    const inUse = { code: 'POOL_IN_USE', message: new RegExp(address.replace(/[.:/]/g, '.')) }
    await t.rejects(there.ask('acquire', null), inUse)
    await here.ask('write', 0, 0, 1)
    await here.ask('end')
    await there.ask('acquire', null)
    t.equal(await there.ask('read', 0, 0), 1)
  })

  await t.test('a host that was killed: its own next engine breaks its lock at once', async t => {
    const [here] = (await hosts(t, 'outside')) as [RbdHost]
    const address = await here.ask<string>('acquire', null)
    await here.ask('write', 0, 0, 1)
    await here.kill()
    const next = await another(t, 'outside')
    const begun = Date.now()
    await next.ask('acquire', address)
    t.comment(`${Date.now() - begun} ms`)
    await next.ask('write', 0, 0, 2)
    t.ok(
      (await ceph.blocklist()).some(({ addr }) => addr === address),
      'and the cluster refuses it',
    )
  })

  await t.test('a host that was killed: another one has it when Ceph has noticed', async t => {
    const [here] = (await hosts(t, 'outside')) as [RbdHost]
    await here.ask('acquire', null)
    await here.ask('write', 0, 0, 1)
    await here.kill()
    const there = await another(t, 'inside')
    const begun = Date.now()
    await there.ask('acquire', null)
    t.comment(`${Date.now() - begun} ms`)
    t.equal(await there.ask('read', 0, 0), 1)
  })

  await t.test('a host that was cut off is fenced; what it sends later is refused', async t => {
    const [here, there] = (await hosts(t, 'outside', 'inside')) as [RbdHost, RbdHost]
    t.teardown(() => ceph.heal())
    const address = await here.ask<string>('acquire', null)
    await here.ask('write', 0, 0, 1)
    await ceph.cut()
    // In flight while the other one takes over.
    const hanging = here.ask('write', 0, 0, 9)
    const refused = t.rejects(hanging, { code: 'IO_ERROR', errno: /ESHUTDOWN|ETIMEDOUT/ })
    await there.ask('fence', await there.ask('owner'))
    const begun = Date.now()
    await there.ask('acquire', null)
    t.comment(`${Date.now() - begun} ms`)
    t.equal(await there.ask('read', 0, 0), 1)
    await there.ask('write', 0, 0, 2)
    await ceph.heal()
    await refused
    t.equal((await here.lost).code, 'LOCK_LOST')
    await t.rejects(here.ask('write', 0, 0, 9), { code: 'IO_ERROR' })
    await t.rejects(here.ask('confirm'), { code: 'LOCK_LOST' })
    t.equal(await there.ask('read', 0, 0), 2)
    const entry = (await ceph.blocklist()).find(({ addr }) => addr === address)
    const days = (Date.parse(`${entry!.until.slice(0, 19)}Z`) - Date.now()) / 86_400_000
    t.ok(days > 360, `refused until ${entry!.until}`)
  })

  await t.test('a host that slept is refused when it wakes up', async t => {
    const [here, there] = (await hosts(t, 'outside', 'inside')) as [RbdHost, RbdHost]
    await here.ask('acquire', null)
    here.signal('SIGSTOP')
    await there.ask('fence', await there.ask('owner'))
    await there.ask('acquire', null)
    await there.ask('write', 0, 0, 2)
    const late = here.ask('write', 0, 0, 9)
    const refused = t.rejects(late, { code: 'IO_ERROR', errno: 'ESHUTDOWN' })
    here.signal('SIGCONT')
    await refused
    t.equal(await there.ask('read', 0, 0), 2)
  })

  await t.test('an OSD that dies is a pause; two of three are an error in time', async t => {
    const [here] = (await hosts(t, 'outside')) as [RbdHost]
    await here.ask('acquire', null)
    const write = async (from: number, to: number): Promise<void> => {
      for (let i = from; i < to; i++) await here.ask('write', 0, i * 64 * KIB, i)
    }
    const writing = write(1, 101)
    await ceph.killOsd(0)
    await writing
    await ceph.startOsd(0)
    await ceph.ready()
    await Promise.all([ceph.killOsd(0), ceph.killOsd(1)])
    await t.rejects(write(1, 101), { code: 'IO_ERROR', errno: 'ETIMEDOUT' })
    await Promise.all([ceph.startOsd(0), ceph.startOsd(1)])
    await ceph.ready()
    await here.kill()
    const there = await another(t, 'inside')
    await there.ask('acquire', null)
    for (const i of [1, 50, 100]) t.equal(await there.ask('read', 0, i * 64 * KIB), i)
  })

  await t.test('a process that ends with an open client ends as it says', async t => {
    const [here] = (await hosts(t, 'outside')) as [RbdHost]
    await here.ask('acquire', null)
    void here.ask('write', 0, 0, 1).catch(() => {})
    here.ask('exit', 3).catch(() => {})
    t.equal(await here.ended(), 3)
  })

  await t.test('errors name what is wrong', async t => {
    const failing = { code: 'IO_ERROR', message: /nowhere\.conf/ }
    await t.rejects(CephClient.connect({ conf: '/nowhere.conf', user: 'admin' }), failing)
    const nobody = { code: 'IO_ERROR', message: /client\.nobody/ }
    await t.rejects(CephClient.connect({ conf, user: 'nobody' }), nobody)
    const client = await CephClient.connect({ conf, user: 'host' })
    for (const [pool, image] of [
      ['thin', 'none'],
      ['none', 'data'],
    ] as const) {
      const text = `rbd:${pool}/${image}`
      await t.rejects(RbdDisk.open(client, { pool, namespace: '', image, text }), {
        code: 'IO_ERROR',
        message: text,
      })
    }
    await client.close()
  })
})
