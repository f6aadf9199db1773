/** The engine's program: `node main.js START`, where START is an EngineStart as JSON. */
import type { EngineStart } from '../control/index.js'
import { runEngine } from './engine.js'

await runEngine(JSON.parse(process.argv[2]!) as EngineStart)
