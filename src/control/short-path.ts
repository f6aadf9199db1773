/**
 * Paths of unix sockets are at most 107 bytes (sockaddr_un), those of pools may be longer: a socket
 * is named by way of a descriptor of its folder.
 */
import { constants, openSync } from 'node:fs'
import { basename, dirname } from 'node:path'

/** The folder of a socket; the caller's to close, when the short path is not used any more. */
export const openFolderOf = (path: string): number =>
  openSync(dirname(path), constants.O_RDONLY | constants.O_DIRECTORY)

/** A short name of the socket at `path`, as long as `folder`, its folder, is open. */
export const shortPath = (folder: number, path: string): string =>
  `/proc/self/fd/${folder}/${basename(path)}`
