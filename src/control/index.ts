/** Communication between the processes of a mount, and with commands. */
export { connectDaemon, type DaemonClient, umountUnasked } from './client.js'
export { ControlSocket, connectControlSocket, controlSocketPath } from './control-socket.js'
export * from './dm-protocol.js'
export {
  ENGINE_PROGRAM,
  type SpawnEngine,
  spawnEngine,
  spawnTableEngine,
} from './engine-process.js'
export { EventLog } from './event-log.js'
export { DescriptorInbox, sendDescriptors } from './hand-over.js'
export * from './protocol.js'
export * from './rpc.js'
export { makeRuntimeFolder, runtimeFolder } from './runtime-folder.js'
export * from './table-protocol.js'
export * from './transport.js'
export { mustSpeakOurs, PROTOCOL } from './version.js'
