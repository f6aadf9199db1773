// Makes the copy of fuse-native that is bundled with a package of thinfs one that npm only unpacks.
//
//   scripts/strip-fuse-native.mjs [FOLDER]    default: the installed one
//
// npm runs a bundled package's install script as well, and drops an optional package whose script
// fails: fuse-native's needs libfuse 2 or a C compiler. Its prebuilt addon needs neither, because
// thinfs opens the bundled libfuse first.
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const installed = fileURLToPath(new URL('../node_modules/fuse-native', import.meta.url))
const file = join(process.argv[2] ?? installed, 'package.json')
if (!existsSync(file)) {
  console.error(`${file} is missing: npm install --ignore-scripts brings it`)
  process.exit(1)
}
const { scripts: _, ...manifest } = JSON.parse(readFileSync(file, 'utf8'))
// Without this npm compiles whatever has a binding.gyp.
writeFileSync(file, `${JSON.stringify({ ...manifest, gypfile: false }, null, 2)}\n`)
