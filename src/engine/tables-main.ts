/**
 * Serves devices by number: `node tables-main.js START`, where START is a TableEngineStart as JSON.
 */
import type { TableEngineStart } from '../control/index.js'
import { runTables } from './tables.js'

await runTables(JSON.parse(process.argv[2]!) as TableEngineStart)
