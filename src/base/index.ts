/** Units, layouts, errors, assertions: no I/O. Used by every room, imports none. */
export * from './assert.js'
export * from './errors.js'
export * from './held-path.js'
export * from './later.js'
export * from './layout.js'
export * from './trust.js'
export * from './u64.js'
export * from './units.js'
