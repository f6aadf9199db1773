/** How to talk with an engine. The engine itself is a program of its own: main.ts. */
export * from './log.js'
export * from './protocol.js'
export * from './rpc.js'
