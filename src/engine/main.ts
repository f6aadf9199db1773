/** The engine's program: `node main.js START`, where START is an EngineStart as JSON. */
import { runEngine } from './engine.js'
import type { EngineStart } from './protocol.js'

await runEngine(JSON.parse(process.argv[2]!) as EngineStart)
