/** io_uring: many operations under way at a time, without a thread for each. */
export { Ring, type RingOptions } from './ring.js'
