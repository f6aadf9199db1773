/** How to talk with an engine. The engine itself is a program of its own: main.ts. */
export { ControlSocket, connectControlSocket, controlSocketPath } from './control-socket.js'
export { DescriptorInbox } from './hand-over.js'
export * from './log.js'
export * from './protocol.js'
export * from './rpc.js'
export { makeRuntimeFolder, runtimeFolder } from './runtime-folder.js'
export * from './table-protocol.js'
export * from './transport.js'
