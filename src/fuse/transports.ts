/** The ways to speak FUSE that there are. */
import { INIT_FLAG2 } from './abi.js'
import { loadFuseNative } from './fuse-native.js'
import type { Negotiated } from './init.js'
import { LibfuseSession } from './libfuse-session.js'
import { mountFuse } from './mount.js'
import { RingDevice, whyNotOffered } from './ring-device.js'
import { FuseSession, type Upgrade } from './session.js'
import type { Transport } from './transport.js'

/** Requests are read from /dev/fuse. A descriptor of it is all that an engine needs. */
export const DEV = {
  name: 'dev',
  capabilities: {
    outlivesEngine: true,
    notifies: true,
    handles: true,
    discards: true,
    seeksHoles: true,
    copiesRanges: true,
    interrupts: true,
  },
  mount: mountFuse,
  serve: options => new FuseSession(options),
} as const satisfies Transport

const RING: Upgrade = {
  flag2: INIT_FLAG2.OVER_IO_URING,
  open: fd => new RingDevice(fd),
  whyNotOffered,
}

/**
 * Requests come through an io_uring once INIT has agreed on it, and through /dev/fuse where it does
 * not. The kernel gives what it has put into a ring to nobody else.
 */
export const URING = {
  name: 'uring',
  capabilities: { ...DEV.capabilities, outlivesEngine: false },
  mount: mountFuse,
  serve: options => new FuseSession(options, RING),
} as const satisfies Transport

/**
 * libfuse 2 reads the requests, by way of the package fuse-native. docs/TRANSPORTS.md says what it
 * cannot do, and why.
 */
export const FUSE_NATIVE = {
  name: 'fuse-native',
  capabilities: {
    outlivesEngine: false,
    notifies: false,
    handles: true,
    discards: true,
    seeksHoles: false,
    copiesRanges: false,
    interrupts: false,
  },
  mount: async (mountPoint, options) => {
    // Find out what is missing before anything is mounted.
    loadFuseNative()
    return mountFuse(mountPoint, options)
  },
  serve: options => new LibfuseSession(options),
} as const satisfies Transport

/** By name. */
export const TRANSPORTS = { [DEV.name]: DEV, [URING.name]: URING, [FUSE_NATIVE.name]: FUSE_NATIVE }

/** The transport that a connection's INIT has agreed on. */
export const transportOf = ({
  flags2,
  transport,
}: Negotiated): (typeof TRANSPORTS)[keyof typeof TRANSPORTS] => {
  if (transport !== undefined) return TRANSPORTS[transport]
  return (flags2 & RING.flag2) !== 0 ? URING : DEV
}
