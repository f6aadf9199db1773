/**
 * A path to the file or folder behind an open descriptor of this process, for calls that take a
 * path. It stays right when the file is moved. Source: proc(5).
 */
export const heldPath = (fd: number): string => `/proc/self/fd/${fd}`
