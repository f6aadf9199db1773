/**
 * Mount namespaces that have copies of a test's own mounts. They let go of what other tests have
 * mounted, first while unmounts still reach the copies, so that they never hold theirs.
 */

/**
 * For sh: `let_go KEEP` unmounts, in the namespace that it runs in, what tests have mounted, but
 * for what is below KEEP. Every namespace that a test makes calls it: the copies in it would hold
 * the mounts of all other tests.
 */
export const LET_GO = `
others() {
  awk -v keep="$1/" '(/ fuse[.]thinfs / || $1 ~ "^/dev/(loop|mapper)" || $2 ~ "thinfs-") \\
    && index($2 "/", keep) != 1 { gsub(/\\\\040/, " ", $2); print $2 }' /proc/self/mounts | tac
}
let_go() { others "$1" | xargs -r -d '\\n' umount -l 2>/dev/null; true; }
`

/**
 * `sh -c` with a folder and options of mount(8): keeps the mounts below it, prints a line, sleeps.
 */
const PROGRAM = `${LET_GO}
mount --make-slave /
let_go "$1"
[ -z "$2" ] || mount "$2" /
let_go "$1"
echo
exec sleep 1000
`

/**
 * The command that starts such a process.
 * @param propagation how unmounts reach the copies: `shared` leaves those below `folder` as they
 *   are
 */
export function namespaceCommand(
  folder: string,
  propagation: 'private' | 'slave' | 'shared',
): [program: string, ...args: string[]] {
  const first = propagation === 'shared' ? 'unchanged' : 'slave'
  const then = propagation === 'private' ? '--make-rprivate' : ''
  return ['unshare', '-m', '--propagation', first, 'sh', '-c', PROGRAM, 'sh', folder, then]
}
