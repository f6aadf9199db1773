/**
 * The keeper of an ephemeral pool, a program of its own: `node main.js START`, see KeeperStart.
 *
 * The owner, who needs the pool, may be killed at any moment. So the keeper makes all that would be
 * left then, and takes it away: when the owner says so, or when the IPC channel ends, as it does
 * with the owner, whatever that died of.
 */
import { mkdirSync, writeFileSync } from 'node:fs'
import { dirname } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { newConfig, renderConfig } from '../config/index.js'
import { toWire } from '../control/index.js'
import { startDaemon } from '../daemon/index.js'
import { cleanAbandoned, lockNew } from './abandoned.js'
import { clean } from './clean.js'
import { END, type KeeperSays, type KeeperStart } from './keeper-protocol.js'
import { Layout } from './layout.js'

/** How often what an owner left who was killed is tried to be taken away again, and how soon. */
const MORE_TIMES = 30
const PAUSE_MS = 1000

const { base, dataSize, dataBlockSize }: KeeperStart = JSON.parse(process.argv[2]!)
const owner = process.ppid
const layout = new Layout(base)
const isOver = new Promise<void>(resolve => {
  process.once('disconnect', resolve)
  process.on('message', message => {
    if (message === END) resolve()
  })
  // The owner may have been killed while this program was loaded.
  if (!process.connected) resolve()
})
// The keeper has a session of its own and hears no Ctrl-C. Signals that are sent to all processes
// end the owner as well.
for (const signal of ['SIGHUP', 'SIGINT', 'SIGTERM'] as const) process.on(signal, () => {})

async function make(): Promise<void> {
  // Filesystems may belong to other users, who have to get there.
  mkdirSync(base, { mode: 0o711 })
  lockNew(layout)
  mkdirSync(layout.filesystems, { mode: 0o711 })
  for (const folder of [layout.pool, layout.mountPoint]) mkdirSync(folder, { mode: 0o700 })
  const { file } = layout.place
  const config = newConfig(file, {
    ...{ pool: 'testing', dataSize, dataBlockSize, volumes: {} },
    // A test that fails at once says more than one that hangs.
    onFull: 'error',
  })
  writeFileSync(file, renderConfig(config), { mode: 0o600 })
  const { initPool } = await import('../volumes/index.js')
  await initPool(config)
  await startDaemon(config, {
    ...{ mountPoint: layout.mountPoint, mountOptions: [], foreground: false, logLevel: 'info' },
  })
}

function say(message: KeeperSays): Promise<void> {
  return new Promise(resolve => {
    // The owner may be gone: there is nobody to tell then.
    if (process.connected) process.send!(message, () => resolve())
    else resolve()
  })
}

/** @returns the error that an act fails with; null when it succeeds */
const errorOf = (act: () => Promise<void>) => act().then(() => null, toWire)

const failure = await errorOf(make)
await say({ made: failure })
const cleaning = failure === null ? cleanAbandoned(dirname(base)).catch(() => {}) : null
if (failure === null) await isOver
let left = await errorOf(() => clean(layout, owner))
// An owner who is still there is told. Of one who was killed something may stay busy for a while.
for (let i = 0; left !== null && !process.connected && i < MORE_TIMES; i++) {
  await sleep(PAUSE_MS)
  left = await errorOf(() => clean(layout, owner))
}
await say({ ended: left })
await cleaning
// A program of the system that hangs, so that not even SIGKILL ends it, does not keep this one.
process.exit()
