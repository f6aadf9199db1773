/** The daemon's own program: `node main.js START`, see DaemonStart. */
import { loadConfig } from '../config/index.js'
import { toWire } from '../control/index.js'
import { runDaemon } from './run.js'
import type { DaemonStart, DaemonStarted } from './start.js'

const { configFile, options }: DaemonStart = JSON.parse(process.argv[2]!)

/** Tells whoever started this process, if that still waits, and lets go of it. */
function answer(started: DaemonStarted): void {
  if (process.connected) process.send?.(started, () => process.disconnect())
}

try {
  const daemon = await runDaemon(loadConfig(configFile), options)
  answer(daemon.failure === null ? null : toWire(daemon.failure))
  await daemon.ended()
} catch (err) {
  answer(toWire(err))
  process.exitCode = 1
}
