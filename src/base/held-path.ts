/**
 * A path by which calls that take one reach the file or folder behind an open descriptor of this process,
 * wherever it was moved to. Source: proc(5).
 */
export const heldPath = (fd: number): string => `/proc/self/fd/${fd}`
