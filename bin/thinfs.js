#!/bin/sh
//bin/true; true 2>/dev/null 3>&1 || export THINFS_STDOUT=closed; exec node "$0" "$@"
// The line above is for sh: node puts /dev/null in the place of a standard output that is closed.
import { basename } from 'node:path'

try {
  const { run } = await import('../dist/cli/main.js')
  // By the name of a link: mount(8) looks for /sbin/mount.thinfs, for instance.
  process.exitCode = await run(process.argv.slice(2), basename(process.argv[1]))
} catch (err) {
  // Its own program has answered for all but its being loaded.
  const advice =
    err.code === 'EMFILE' ? '; raise the limit of open files, as with ulimit -n 1024' : ''
  process.stderr.write(`thinfs: the program cannot be loaded: ${err.message}${advice}\n`)
  process.exitCode = 1
}
