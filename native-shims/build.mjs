/**
 * Builds the addon with one call of the C compiler (CC, default cc): no Python, no node-gyp.
 *
 *   node build.mjs [TARGET]    default: build/thinfs.node beside this file
 *
 * Does nothing when the addon is newer than its sources, nor when the package has brought one that
 * works here. Headers come from the Node installation, else from the package node-api-headers.
 * Exits 1 with one line when it cannot be built.
 */
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, statSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const folder = dirname(fileURLToPath(import.meta.url))
const target = process.argv[2] ?? join(folder, 'build', 'thinfs.node')
const sources = readdirSync(folder).filter(name => /\.(c|h|mjs)$/.test(name))
const modified = path => statSync(path).mtimeMs

const isCurrent = () =>
  existsSync(target) && !sources.some(name => modified(join(folder, name)) > modified(target))

if (!isCurrent() && (process.argv[2] !== undefined || !hasPrebuilt())) build()

/** Whether this is an installed package which has brought an addon that loads here. */
function hasPrebuilt() {
  if (existsSync(join(folder, '../src'))) return false
  const libc = readFileSync('/proc/self/maps', 'latin1').includes('/ld-musl-') ? 'musl' : 'glibc'
  const file = join(folder, 'prebuilds', `${process.arch}-${libc}.node`)
  try {
    createRequire(import.meta.url)(file)
    return true
  } catch {
    return false
  }
}

function build() {
  const headers = includeFolder()
  if (headers === null) stop('node_api.h is missing: install the package node-api-headers')
  mkdirSync(dirname(target), { recursive: true })
  // Built aside and renamed, so that whoever loads the addon meanwhile finds a whole one.
  const unfinished = `${target}.${process.pid}`
  const [compiler, ...own] = (process.env.CC ?? 'cc').split(' ')
  const inputs = sources.filter(name => name.endsWith('.c')).map(name => join(folder, name))
  const flags = [
    '-O2',
    '-shared',
    '-fPIC',
    '-fvisibility=hidden',
    '-Wall',
    '-Wextra',
    '-I',
    headers,
  ]
  const result = spawnSync(compiler, [...own, ...flags, '-o', unfinished, ...inputs], {
    stdio: 'inherit',
  })
  if (result.error)
    stop(`no C compiler (${compiler}): install one, such as Debian's gcc and libc6-dev`)
  if (result.status !== 0) stop(`${compiler} failed`)
  renameSync(unfinished, target)
}

function includeFolder() {
  const installed = join(dirname(process.execPath), '..', 'include', 'node')
  if (existsSync(join(installed, 'node_api.h'))) return installed
  try {
    return createRequire(import.meta.url)('node-api-headers').include_dir
  } catch {
    return null
  }
}

function stop(reason) {
  console.error(`native-shims: ${reason}`)
  process.exit(1)
}
