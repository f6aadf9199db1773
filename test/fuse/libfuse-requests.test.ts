// Goal: a request of libfuse is answered once, not before what it tells of would survive this
// process, and not never. Method: a file system that answers when it is told to, and a deadline
// that is over at once.
import t from 'tap'
import { ThinfsError } from '../../src/base/index.js'
import { LibfuseRequests } from '../../src/fuse/libfuse-requests.js'

const DAY_MS = 86_400_000
const turn = (): Promise<void> => new Promise(resolve => setImmediate(resolve))

function make(deadlineMs = DAY_MS) {
  const fileSystem = {
    unsettled: false,
    settle: (): void | Promise<void> => {
      fileSystem.unsettled = false
    },
  }
  const said: unknown[] = []
  const requests = new LibfuseRequests({
    fileSystem,
    deadlineMs,
    onError: (operation, err) => said.push([operation, (err as Error).message]),
    onFatal: err => said.push(['fatal', (err as Error).message]),
  })
  const reply = (errno: number, value: unknown): unknown => said.push([errno, value])
  return { fileSystem, requests, reply, said }
}

t.test('values, promises and errors are answered', async t => {
  const { requests, reply, said } = make()
  requests.handle('A', () => 1, reply)
  requests.handle('B', async () => 2, reply)
  requests.handle(
    'C',
    () => {
      throw new ThinfsError('VOLUME_MISSING', 'c')
    },
    reply,
  )
  await turn()
  t.same(said, [
    [0, 1],
    ['C', 'c'],
    [2, undefined],
    [0, 2],
  ])
})

t.test('a deadline answers, and what comes afterwards does not', async t => {
  const { requests, reply, said } = make(1)
  const late = deferred<number>()
  const missed: number[] = []
  requests.handle(
    'A',
    () => late.promise,
    reply,
    value => missed.push(value),
  )
  while (said.length < 2) await turn()
  t.same(said, [
    ['A', 'no answer'],
    [110, undefined],
  ])
  late.resolve(3)
  await turn()
  t.same([said.length, missed], [2, [3]])
})

t.test('answers wait for what settles them; what comes meanwhile is held', async t => {
  const { fileSystem, requests, reply, said } = make()
  const settled = deferred<void>()
  const write = (value: number): number => {
    fileSystem.unsettled = true
    return value
  }
  fileSystem.settle = () => {
    fileSystem.unsettled = false
    return settled.promise
  }
  requests.handle('A', () => write(1), reply)
  requests.handle('B', () => write(2), reply)
  t.same(said, [])
  await turn()
  let handled = false
  requests.handle(
    'C',
    () => {
      handled = true
      return 3
    },
    reply,
  )
  t.notOk(handled, 'it is not handled while changes are being settled')
  settled.resolve()
  await turn()
  t.same(said, [
    [0, 1],
    [0, 2],
    [0, 3],
  ])
})

t.test('changes that cannot be settled are told to those who made them', async t => {
  const { fileSystem, requests, reply, said } = make()
  fileSystem.settle = () => {
    fileSystem.unsettled = false
    throw new ThinfsError('NO_METADATA_SPACE', 'full')
  }
  requests.handle(
    'A',
    () => {
      fileSystem.unsettled = true
      return 1
    },
    reply,
  )
  await turn()
  t.same(said, [
    ['settle', 'full'],
    [28, undefined],
  ])
})

t.test('a bug is not answered, and nothing is after it', async t => {
  const { requests, reply, said } = make()
  requests.handle('A', () => Promise.reject(new TypeError('bug')), reply)
  await turn()
  requests.handle('B', () => 1, reply)
  t.same(said, [['fatal', 'bug']])
})

function deferred<T>() {
  let resolve: (value: T) => void = () => {}
  const promise = new Promise<T>(done => {
    resolve = done
  })
  return { promise, resolve }
}
