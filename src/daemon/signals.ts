/** Signals by which people and init systems end a mount. */
export const SIGNALS = ['SIGINT', 'SIGTERM'] as const
