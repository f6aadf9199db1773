/**
 * What an open descriptor of this process leads to, for calls that take a path: the same file or folder
 * wherever it was moved to. Source: proc(5).
 */
export const heldPath = (fd: number): string => `/proc/self/fd/${fd}`
