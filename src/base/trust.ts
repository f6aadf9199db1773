/**
 * Whom to trust: a file or folder counts only when nobody but root and the user of this process
 * could have written it. The rule of sshd's StrictModes; SECURITY.md.
 */

const GROUP_OR_OTHERS_WRITE = 0o022

/**
 * The reason why user `uid` must not trust a file with this owner and mode; null when he may.
 * @param stat of the target of a symbolic link, not of the link
 */
export function whyNotTrusted(stat: { uid: number; mode: number }, uid: number): string | null {
  if (stat.uid !== 0 && stat.uid !== uid) {
    const wanted = uid === 0 ? 'root' : `root or user ${uid}`
    return `belongs to user ${stat.uid}, wanted ${wanted}`
  }
  if ((stat.mode & GROUP_OR_OTHERS_WRITE) === 0) return null
  return `has mode ${(stat.mode & 0o7777).toString(8)}, wanted one that lets no others write (chmod go-w)`
}

/**
 * The reason why this is no regular file of user `uid`; null when it is.
 * @param stat of a link itself
 */
export function whyNotOf(stat: { uid: number; isFile(): boolean }, uid: number): string | null {
  if (!stat.isFile())
    return `is not a regular file, as everything in a copy of user ${uid} has to be`
  return stat.uid === uid ? null : `belongs to user ${stat.uid}, in a copy of user ${uid}`
}
