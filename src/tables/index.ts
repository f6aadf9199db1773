/** Device tables: what device-mapper's targets do, for devices that go by their minor number. */
export type { Extent, Range, Source, TableEngine, TableEvents, Target } from './table-engine.js'
export { Tables, type TablesOptions } from './tables.js'
