/** Device tables, as device-mapper has them. */
export type { Extent, Source, TableEngine, TableEvents, Target } from './table-engine.js'
