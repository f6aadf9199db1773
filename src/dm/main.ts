/**
 * The service's own program: `node main.js OPTIONS`, where OPTIONS is a DmServiceOptions as JSON.
 */
import { toWire } from '../control/index.js'
import { runDm } from './start.js'

await runDm(JSON.parse(process.argv[2]!), failure => {
  if (failure !== null) process.exitCode = 1
  if (!process.connected) return
  process.send?.(failure === null ? null : toWire(failure), () => process.disconnect())
})
