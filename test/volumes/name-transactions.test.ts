// Goal: changes of names come one after the other, volumes.json is never more than one transaction
// ahead of the pool, and a change that fails leaves both as they were. Method: a pool and a file in
// memory that fail when the test says so; the transaction ids of both, looked at whenever one of
// them is written.
import t from 'tap'
import { NameTransactions } from '../../src/volumes/name-transactions.js'
import { type VolumeEntry, VolumeTable } from '../../src/volumes/volume-table.js'
import { devId, openFiles } from '../support/memory-pool.js'
import { failure, files, turn } from '../support/thin-devices.js'

const entryOf = (name: string, dev_id: number): VolumeEntry => ({
  ...{ name, dev_id, size: 0, origin: null, created: 0 },
  ...{ mode: 0o600, uid: 0, gid: 0, removed: false },
})

async function opened() {
  const memory = files()
  const { pool } = await openFiles(memory)
  const file = {
    path: 'volumes.json',
    content: null as string | null,
    fails: false,
    /** How far the file was ahead of the pool's last commit, at each look. */
    ahead: [] as number[],
    read: () => file.content,
    async replace(content: Uint8Array): Promise<void> {
      await turn()
      if (file.fails) throw failure('EIO')
      file.content = Buffer.from(content).toString()
      look()
    },
  }
  let durable = pool.metadata.transactionId
  const idOf = (): number => (file.content === null ? 0 : JSON.parse(file.content).transaction_id)
  const look = (): void => void file.ahead.push(idOf() - durable)
  memory.metadata.onWrite = (op, offset) => {
    if (op !== 'write' || offset !== 0) return
    look()
    durable = pool.metadata.transactionId
  }
  const { transactionId, uuid } = pool.metadata
  const table = VolumeTable.load(file, { name: 'p', transactionId, uuid })
  const names = new NameTransactions(pool, table, () => undefined)
  return { memory, pool, file, table, names, idOf }
}

t.test('changes come one after the other, whatever becomes of each', async t => {
  const { names } = await opened()
  const order: string[] = []
  const change = (name: string, fails: boolean): Promise<string> =>
    names.exclusive(async () => {
      order.push(`${name} begins`)
      await turn()
      order.push(`${name} ends`)
      if (fails) throw new Error(name)
      return name
    })
  const results = await Promise.allSettled([
    change('a', false),
    change('b', true),
    change('c', false),
  ])
  t.same(
    results.map(({ status }) => status),
    ['fulfilled', 'rejected', 'fulfilled'],
  )
  t.same(order, ['a begins', 'a ends', 'b begins', 'b ends', 'c begins', 'c ends'])
})

t.test('the file goes first, by one', async t => {
  const { pool, file, table, names, idOf } = await opened()
  for (let id = 0; id < 3; id++) {
    await names.exclusive(() =>
      names.commit(new Map([[id, entryOf(`v${id}`, id)]]), () =>
        pool.devices.createThin(devId(id)),
      ),
    )
    t.equal(pool.metadata.transactionId, id + 1)
    t.equal(idOf(), id + 1)
    t.equal(table.get(id)?.name, `v${id}`)
  }
  t.same(file.ahead, [1, 1, 1, 1, 1, 1], 'before each commit')
  await names.exclusive(() => names.jump(3, 90))
  t.same([pool.metadata.transactionId, idOf()], [90, 90])
  t.ok(
    file.ahead.slice(6).every(ahead => ahead <= 1),
    'though the pool jumps the file does not go ahead',
  )
  await pool.close()
})

t.test('a change that fails changes nothing', async t => {
  const failures: [string, (pair: Awaited<ReturnType<typeof opened>>) => () => void][] = [
    [
      'the file',
      ({ file }) => {
        file.fails = true
        return () => {}
      },
    ],
    [
      'the change of the pool',
      () => () => {
        throw failure('EINVAL')
      },
    ],
    [
      'the commit',
      ({ memory }) => {
        memory.metadata.sync = () => Promise.reject(failure('EIO'))
        return () => {}
      },
    ],
  ]
  for (const [what, prepare] of failures) {
    const pair = await opened()
    const { pool, table, names } = pair
    await names.exclusive(() =>
      names.commit(new Map([[0, entryOf('a', 0)]]), () => pool.devices.createThin(devId(0))),
    )
    const act = prepare(pair)
    const failing = names.exclusive(() => names.commit(new Map([[0, entryOf('b', 0)]]), act))
    await t.rejects(failing, what)
    t.equal(table.get(0)?.name, 'a', what)
    t.equal(pool.metadata.transactionId, 1, what)
  }
})
