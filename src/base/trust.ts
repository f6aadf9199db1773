/**
 * Whose word is taken: a file or folder counts only when nobody but root and the user whose process
 * this is could have written what it says. The rule of sshd's StrictModes; SECURITY.md.
 */

const GROUP_OR_OTHERS_WRITE = 0o022

/**
 * Why user `uid` must not rely on what has this owner and mode; null when he may.
 * @param stat of what a symbolic link leads to, not of the link
 */
export function whyNotTrusted(stat: { uid: number; mode: number }, uid: number): string | null {
  if (stat.uid !== 0 && stat.uid !== uid) {
    const wanted = uid === 0 ? 'root' : `root or user ${uid}`
    return `belongs to user ${stat.uid}, wanted ${wanted}`
  }
  if ((stat.mode & GROUP_OR_OTHERS_WRITE) === 0) return null
  return `has mode ${(stat.mode & 0o7777).toString(8)}, wanted one that lets no others write (chmod go-w)`
}

/** Why what is there is no regular file of user `uid`; null when it is. @param stat of a link itself */
export function whyNotOf(stat: { uid: number; isFile(): boolean }, uid: number): string | null {
  if (!stat.isFile())
    return `is not a regular file, as everything in a copy of user ${uid} has to be`
  return stat.uid === uid ? null : `belongs to user ${stat.uid}, in a copy of user ${uid}`
}
