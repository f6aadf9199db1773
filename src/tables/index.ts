/** Device tables: device-mapper's targets, for devices named by their minor number. */
export type { Extent, Range, Source, TableEngine, TableEvents, Target } from './table-engine.js'
export { Tables, type TablesOptions } from './tables.js'
