/** The daemon's own program: `node main.js START`, see DaemonStart. */
import { loadConfig } from '../config/index.js'
import { type Opening, toWire, type WireError } from '../control/index.js'
import { runDaemon } from './run.js'
import type { DaemonMessage, DaemonStart } from './start.js'

const { configFile, options }: DaemonStart = JSON.parse(process.argv[2]!)

/** Tells whoever started this process, if that still waits. */
function tell(opening: Opening): void {
  const message: DaemonMessage = { opening }
  if (process.connected) process.send?.(message)
}

/** Tells whoever started this process, if that still waits, and lets go of it. */
function answer(started: WireError | null): void {
  const message: DaemonMessage = { started }
  if (process.connected) process.send?.(message, () => process.disconnect())
}

try {
  const daemon = await runDaemon(loadConfig(configFile), options, tell)
  answer(daemon.failure === null ? null : toWire(daemon.failure))
  await daemon.ended()
} catch (err) {
  answer(toWire(err))
  process.exitCode = 1
}
