// Goal: whoever reads and writes a store on another machine finds what he has written, whenever
// processes and servers are killed, whatever calls fail. Method: a process that makes random calls
// against a copy in memory, with a cache of eight slots, is killed at any moment and followed by
// another, on nbdkit that fails at random and is killed too; at the end the server's file is that
// copy.
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { KIB, MIB } from '../../src/base/index.js'
import { native } from '../../src/native.js'
import { CacheMemory } from '../../src/remote/index.js'
import { PROGRAM, STATE, STATE_SIZE } from '../support/cache-load.js'
import { ServerProcess, shortFolder } from '../support/nbd-servers.js'
import { Random } from '../support/random.js'
import { EFFORT, tally } from '../support/tally.js'

const SEED = 20_261_129
const SIZE = 2 * MIB
const SLOTS = 8
/** A million in `npm run test:crash`. */
const OPERATIONS = EFFORT === 1 ? 2000 : 100_000 * EFFORT
const KILLS = EFFORT === 1 ? 3 : 5 * EFFORT
const FAILURES = ['error-pwrite', 'error-pread', 'error-zero'].flatMap(call => [
  `${call}=EIO`,
  `${call}-rate=2%`,
])

function serve(t: Test, folder: string, image: string): Promise<ServerProcess> {
  return ServerProcess.nbdkit(t, folder, '--filter=error', 'file', image, ...FAILURES)
}

t.test('killed at any moment', async t => {
  t.comment(`seed ${SEED}`)
  const random = new Random(SEED)
  const folder = shortFolder(t)
  const image = join(folder, 'image')
  writeFileSync(image, '')
  truncateSync(image, SIZE)
  let server = await serve(t, folder, image)
  const memory = [
    CacheMemory.create(SLOTS * 64 * KIB),
    native.memory_create('state', STATE_SIZE),
    native.memory_create('copy', SIZE),
  ]
  t.teardown(() => memory.forEach(fd => void closeSync(fd)))
  const state = new Float64Array(native.memory_map(memory[1]!, 0, STATE_SIZE))
  let child: ChildProcess | null = null
  let said = ''
  t.teardown(() => child?.kill('SIGKILL'))
  const start = (): void => {
    const args = [server.address.text, String(random.below(2 ** 31)), String(OPERATIONS)]
    child = spawn(process.execPath, ['--import=tsx', PROGRAM, ...args], {
      stdio: ['ignore', 'ignore', 'pipe', ...memory],
    })
    child.stderr!.on('data', text => {
      said += text
    })
  }
  const hasEnded = (): boolean => child!.exitCode !== null || child!.signalCode !== null
  start()
  for (let i = 1; i <= KILLS; i++) {
    // Everywhere between two calls, and within them: the moment is the child's.
    const share = (i - random.next()) / KILLS
    while (state[STATE.done]! < OPERATIONS * 0.9 * share && !hasEnded()) await delay(1)
    if (hasEnded()) break
    if (i % 3 === 0) {
      await server.kill()
      server = await serve(t, folder, image)
      continue
    }
    const ended = once(child!, 'exit')
    child!.kill('SIGKILL')
    await ended
    start()
  }
  if (!hasEnded()) await once(child!, 'exit')
  t.equal(child!.exitCode, 0, `the last one finds in the store what the copy has ${said}`)
  const copy = Buffer.from(native.memory_map(memory[2]!, 0, SIZE))
  t.ok(readFileSync(image).equals(copy), 'and so does the file of the server')
  t.ok(
    state[STATE.done]! >= OPERATIONS,
    `${state[STATE.done]} calls, ${state[STATE.syncs]} flushes`,
  )
  t.ok(state[STATE.syncs]! > 0 && state[STATE.reads]! > 0)
  tally(t, { 'kills survived': KILLS, 'bytes verified': SIZE * 2 })
})
