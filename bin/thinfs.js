#!/bin/sh
//bin/true; true 2>/dev/null 3>&1 || export THINFS_STDOUT=closed; exec node "$0" "$@"
// The line above is for sh: node puts /dev/null in the place of a standard output that is closed.
import { run } from '../dist/cli/main.js'

process.exitCode = await run(process.argv.slice(2))
