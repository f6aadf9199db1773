// Goal: requests, the lock and the end of a client are what librbd's interface says. Method: a
// library of the same interface on files, which notes calls, answers in any order, and fails at
// random. With Ceph itself: test/dist/ceph.disttest.ts.
import { readFileSync, truncateSync } from 'node:fs'
import t, { type Test } from 'tap'
import { KIB, MIB, type ThinfsError } from '../../src/base/index.js'
import { CephClient, RbdDisk, RbdLocks, type RbdName } from '../../src/ceph/index.js'
import { mustHaveCeph } from '../../src/ceph/library.js'
import { native } from '../../src/native.js'
import { mixed } from '../support/disk-mix.js'
import { FakeCluster, useFakeCeph } from '../support/fake-ceph.js'
import { Random } from '../support/random.js'

const SIZE = 4 * MIB
const PAGE = 4 * KIB
const named = (image: string): RbdName => {
  return { pool: 'thin', namespace: '', image, text: `rbd:thin/${image}` }
}
const [DATA, METADATA] = [named('data'), named('metadata')]

/** A cluster with both images. */
function cluster(t: Test, text?: string): FakeCluster {
  const of = new FakeCluster(t, text)
  for (const { image } of [DATA, METADATA]) of.make(image, SIZE)
  return of
}

async function connect(t: Test, { conf }: FakeCluster): Promise<CephClient> {
  const client = await CephClient.connect({ conf, user: 'thinfs' })
  t.teardown(() => client.close())
  return client
}

async function open(
  t: Test,
  client: CephClient,
  ...more: [name: RbdName, options?: Parameters<typeof RbdDisk.open>[2]]
): Promise<RbdDisk> {
  const disk = await RbdDisk.open(client, ...more)
  t.teardown(() => disk.end())
  return disk
}

t.test('where the library is missing, the error names its package', async t => {
  const missing = { code: 'NOT_SUPPORTED', message: /none\.so.*apt install librbd1/ }
  t.throws(() => mustHaveCeph('/nowhere/none.so', '/nowhere/none.so'), missing)
  const other = process.execPath
  t.throws(() => mustHaveCeph(other, other), { code: 'NOT_SUPPORTED' }, 'another file')
  t.throws(() => native.ceph_create('client.admin', '/nowhere'), { code: 'ENOSYS' })
})

t.test('with a library', async t => {
  useFakeCeph(t)

  t.test('what is written is there; zeros are never made by a discard', async t => {
    const of = cluster(t)
    const disk = await open(t, await connect(t, of), DATA)
    const random = new Random(1)
    const model = Buffer.alloc(SIZE)
    for (let round = 0; round < 20; round++) {
      await mixed(t, disk, model, random, { inFlight: 32 })
      await disk.flush()
    }
    t.ok(readFileSync(of.file('thin.data')).equals(model), 'as the cluster has it')
    await disk.end()
    await t.rejects(disk.flush(), { code: 'IO_ERROR', message: /closed/ })
    t.notMatch(of.calls, /discard/)
    for (const name of ['rados_osd_op_timeout 30', 'rados_mon_op_timeout 30', 'rbd_cache false']) {
      t.match(of.calls, `set ${name}`)
    }
  })

  t.test('ceph.conf may set the limit, but not for longer than the blocklist lasts', async t => {
    for (const [said, limit] of [
      ['12', 12],
      ['0', 30],
      ['4000', 30],
    ] as const) {
      const of = cluster(t, `rados_osd_op_timeout = ${said}\n`)
      t.equal((await connect(t, of)).limit, limit, said)
      t.match(of.calls, `set rados_osd_op_timeout ${limit}`)
    }
  })

  t.test('a request that fails is an error, with the errno; others go on', async t => {
    const of = cluster(t)
    const disk = await open(t, await connect(t, of), DATA)
    of.faults(50, 28)
    const failed = await outcomes(200, i => disk.write(Buffer.alloc(PAGE, 7), i * PAGE))
    t.ok(failed.length > 20 && failed.length < 180, `${failed.length} of 200`)
    for (const err of failed)
      t.match(err, { code: 'IO_ERROR', errno: 'ENOSPC', message: /^rbd:thin/ })
    of.faults(0, 0)
    await disk.write(Buffer.alloc(PAGE, 8), 0)
    t.equal(disk.client.failure, null)
    await t.rejects(disk.read(Buffer.alloc(PAGE), SIZE), { code: 'IO_ERROR', errno: 'EINVAL' })
  })

  t.test(
    'a client that the cluster refuses, or that had no answer, has failed for good',
    async t => {
      for (const [errno, name] of [
        [108, 'ESHUTDOWN'],
        [110, 'ETIMEDOUT'],
      ] as const) {
        const of = cluster(t)
        const client = await connect(t, of)
        const [data, metadata] = [await open(t, client, DATA), await open(t, client, METADATA)]
        of.faults(100, errno)
        await t.rejects(data.write(Buffer.alloc(PAGE), 0), { code: 'IO_ERROR', errno: name })
        of.faults(0, 0)
        const before = of.calls
        await t.rejects(
          data.read(Buffer.alloc(PAGE), 0),
          { code: 'IO_ERROR', errno: name },
          'later, too',
        )
        await t.rejects(
          metadata.zero(0, PAGE),
          { code: 'IO_ERROR', errno: name },
          'every image of the client',
        )
        await t.rejects(metadata.lock(), { code: 'IO_ERROR', errno: name })
        t.equal(of.calls, before, 'and nothing more was asked of the cluster')
        t.equal((await client.failed).errno, name)
        await data.end()
      }
    },
  )

  t.test('a library that never answers is not waited for', async t => {
    const of = cluster(t, 'rados_osd_op_timeout = 1\n')
    const client = await connect(t, of)
    const disk = await open(t, client, DATA)
    of.faults(100, -1)
    const failed = await outcomes(3, i => disk.write(Buffer.alloc(PAGE), i * PAGE))
    t.same(
      failed.map(({ errno }) => errno),
      ['ETIMEDOUT', 'ETIMEDOUT', 'ETIMEDOUT'],
    )
    await Promise.all([disk.end(), client.close()])
  })

  t.test('extents are objects, as far as there is an object map', async t => {
    const of = cluster(t)
    for (const name of ['plain', 'unmapped']) of.make(name, SIZE)
    const client = await connect(t, of)
    const disk = await open(t, client, DATA)
    t.same(await disk.extents(0, SIZE), [])
    await disk.write(Buffer.alloc(3 * PAGE, 1), 64 * KIB - PAGE)
    await disk.write(Buffer.alloc(PAGE, 1), MIB)
    t.same(await disk.extents(0, SIZE), [
      { offset: 0, length: 128 * KIB },
      { offset: MIB, length: 64 * KIB },
    ])
    t.match(of.calls, 'from - parent 1 whole 1')
    const plain = await open(t, client, named('plain'), { readOnly: true })
    t.equal(await plain.extents(0, SIZE), null, 'none')
    const unmapped = await open(t, client, named('unmapped'))
    t.equal(await unmapped.extents(0, SIZE), null, 'one that does not hold')
    const how = /rbd feature enable thin\/plain exclusive-lock/
    await t.rejects(open(t, client, named('plain')), { code: 'NOT_SUPPORTED', message: how })
    await t.rejects(open(t, client, named('gone')), { code: 'IO_ERROR', errno: 'ENOENT' })
  })

  t.test('an image that grows is noticed', async t => {
    const of = cluster(t)
    let tell = (_size: number): void => {}
    const resized = new Promise<number>(resolve => {
      tell = resolve
    })
    const onResized = (size: number): void => tell(size)
    const disk = await open(t, await connect(t, of), DATA, { onResized })
    truncateSync(of.file('thin.data'), 2 * SIZE)
    await disk.flush()
    t.equal(await resized, 2 * SIZE)
    t.equal(disk.size, 2 * SIZE)
  })

  t.test('one client has the lock of all disks; a second one is told who', async t => {
    const of = cluster(t)
    const both = async (client: CephClient): Promise<RbdDisk[]> => [
      await open(t, client, DATA),
      await open(t, client, METADATA),
    ]
    const here = await both(await connect(t, of))
    const locks = await RbdLocks.acquire(here)
    await locks.confirm()
    const other = await connect(t, of)
    const there = await both(other)
    const inUse = { code: 'POOL_IN_USE', message: new RegExp(locks.address) }
    await t.rejects(RbdLocks.acquire(there), inUse)
    await t.rejects(RbdLocks.acquire(there, '10.0.0.9:0/9'), inUse, 'another that died')
    t.equal(await RbdLocks.owner(there), locks.address)
    t.notMatch(of.calls, /break/)
    await locks.release()
    const next = await RbdLocks.acquire(there)
    t.not(next.address, locks.address)
    await t.rejects(locks.confirm(), { code: 'LOCK_LOST', message: new RegExp(next.address) })
    await t.rejects(here[0]!.write(Buffer.alloc(PAGE), 0), { code: 'LOCK_LOST' }, 'nothing more')
    t.equal((await locks.lost).code, 'LOCK_LOST')
  })

  t.test('a fenced client is refused for a year, and its locks are free', async t => {
    const of = cluster(t)
    const here = await open(t, await connect(t, of), DATA)
    const locks = await RbdLocks.acquire([here])
    const there = await open(t, await connect(t, of), DATA)
    await RbdLocks.fence([there], locks.address)
    const entries = readFileSync(of.file('blocklist'), 'utf8').trim().split('\n')
    t.equal(entries.at(-1), `${locks.address} ${365 * 86400}`, 'the last entry counts')
    t.equal(entries[0], entries.at(-1), 'from the start')
    await RbdLocks.acquire([there])
    await t.rejects(here.write(Buffer.alloc(PAGE), 0), { code: 'IO_ERROR', errno: 'ESHUTDOWN' })
    t.match(await locks.lost, { code: 'LOCK_LOST', message: /another host/ })
    await t.rejects(locks.confirm(), { code: 'LOCK_LOST' })
  })

  t.test('the lock of a client of this host that has died is broken at once', async t => {
    const of = cluster(t)
    const dead = await open(t, await connect(t, of), DATA)
    const { address } = await RbdLocks.acquire([dead])
    const next = await open(t, await connect(t, of), DATA)
    await RbdLocks.acquire([next], address)
    t.match(of.calls, `break thin.data mode 0 of ${address}`)
    await t.rejects(dead.flush(), { code: 'IO_ERROR', errno: 'ESHUTDOWN' })
  })

  t.test('closing gives the lock up, after what is in flight', async t => {
    const of = cluster(t)
    const client = await connect(t, of)
    const disk = await open(t, client, DATA)
    await disk.lock()
    const written = disk.write(Buffer.alloc(PAGE, 5), 0)
    await Promise.all([written, disk.end(), client.close()])
    t.equal(readFileSync(of.file('thin.data'))[0], 5)
    t.match(of.calls, /unlock thin\.data\nclose thin\.data\n(.*\n)*shutdown/)
  })
})

/** The errors of requests that fail, all of which are in flight together. */
async function outcomes(count: number, ask: (i: number) => Promise<void>): Promise<ThinfsError[]> {
  const all = await Promise.allSettled(Array.from({ length: count }, (_, i) => ask(i)))
  return all.flatMap(one => (one.status === 'rejected' ? [one.reason as ThinfsError] : []))
}
