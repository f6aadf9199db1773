/**
 * The keeper of an ephemeral pool, a program of its own: `node main.js START`, see KeeperStart.
 *
 * Whoever needs the pool may be killed at any moment. So it is this process that makes what would
 * be left then, and takes it away: when it is told to, or when its IPC channel ends, as it does
 * with the process at the other end, whatever that died of.
 */
import { mkdirSync, writeFileSync } from 'node:fs'
import { dirname } from 'node:path'
import { newConfig, renderConfig } from '../config/index.js'
import { toWire } from '../control/index.js'
import { startDaemon } from '../daemon/index.js'
import { cleanAbandoned, lockNew } from './abandoned.js'
import { clean } from './clean.js'
import { END, type KeeperSays, type KeeperStart } from './keeper-protocol.js'
import { Layout } from './layout.js'

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
// In a session of its own it hears no Ctrl-C. A signal to all processes ends the owner as well.
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
    // A test that fails at once tells more than one that hangs.
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

/** @returns the error that an act ends with */
const errorOf = (act: () => Promise<void>) => act().then(() => null, toWire)

const failure = await errorOf(make)
await say({ made: failure })
if (failure === null) {
  const cleaning = cleanAbandoned(dirname(base)).catch(() => {})
  await isOver
  await cleaning
}
await say({ ended: await errorOf(() => clean(layout, owner)) })
if (process.connected) process.disconnect()
