/** Device-mapper for programs that ask for it, on a kernel that has none. */
export { dmStatus, startDm, stopDm } from './start.js'
