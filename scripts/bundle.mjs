/**
 * src/ and the packages that it uses → dist/, in few files: a command that loads three hundred
 * modules takes three times as long as one that loads three.
 *
 * The native addon of crc32 stays outside, and so do pino-pretty, which a foreground mount alone
 * loads, and fuse-native, which a mount loads that asks for it. dist/LICENSES has the licences of
 * all that went in.
 */
import { cpSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { build } from 'rolldown'

process.chdir(join(import.meta.dirname, '..'))

const PROGRAMS = [
  ...['cli/main', 'daemon/main', 'dm/main', 'engine/main', 'engine/tables-main', 'testing/main'],
]
const LIBRARIES = ['index', 'testing/index']
const program = name => [name, `src/${name}.ts`]
const options = {
  platform: 'node',
  external: ['@node-rs/crc32', 'pino-pretty'],
  // Nothing in src/ has to be loaded for what it does alone, but the programs.
  treeshake: { moduleSideEffects: id => !/\/src\//.test(id) || /\b(tables-)?main\.ts$/.test(id) },
}

/** Modules of which a command that talks to a daemon needs something, for a chunk of their own. */
async function modulesOfACommand() {
  const { output } = await build({
    ...options,
    input: 'src/cli/main.ts',
    write: false,
    plugins: [{ name: 'not what is loaded later', resolveDynamicImport: () => false }],
  })
  return new Set(Object.keys(output[0].modules).filter(id => !/\/src\/cli\/|commander/.test(id)))
}

const shared = await modulesOfACommand()
const { output } = await build({
  ...options,
  input: Object.fromEntries([...PROGRAMS, ...LIBRARIES].map(program)),
  preserveEntrySignatures: 'allow-extension',
  output: {
    dir: 'dist',
    format: 'esm',
    sourcemap: true,
    chunkFileNames: 'chunks/[name]-[hash].js',
    codeSplitting: {
      includeDependenciesRecursively: false,
      groups: [
        { name: 'command', test: id => shared.has(id) },
        // Else it would be part of the engine's program, which a command must not run to have it.
        { name: 'replay', test: id => /\/src\/replay\//.test(id) },
      ],
    },
  },
})

// The page of `thinfs serve`, for browsers: a script, a style sheet, a document.
const page = await build({
  input: 'src/monitor/page/main.ts',
  platform: 'browser',
  output: { file: 'dist/page/page.js', format: 'esm', minify: true },
})
mkdirSync('dist/page', { recursive: true })
cpSync('src/monitor/page/index.html', 'dist/page/index.html')
const styles = ['node_modules/uplot/dist/uPlot.min.css', 'src/monitor/page/page.css']
writeFileSync('dist/page/page.css', styles.map(file => readFileSync(file, 'utf8')).join('\n'))

// Not before the new ones are there: somebody may be running what is built.
const written = new Set(output.flatMap(({ fileName }) => [fileName, `${fileName}.map`]))
for (const name of readdirSync('dist/chunks').map(name => `chunks/${name}`)) {
  if (!written.has(name)) rmSync(join('dist', name))
}

const modules = [...output, ...page.output].flatMap(({ modules }) => Object.keys(modules ?? {}))
const packages = modules.flatMap(id => /\/node_modules\/((@[^/]+\/)?[^/]+)/.exec(id)?.[1] ?? [])
const licences = [...new Set(packages)].sort().map(name => {
  const folder = join('node_modules', name)
  const { version, license } = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8'))
  const file = readdirSync(folder).find(name => /^licen[cs]e/i.test(name))
  const text = file === undefined ? '' : readFileSync(join(folder, file), 'utf8')
  return `${name} ${version}, ${license}\n\n${text}`
})
writeFileSync('dist/LICENSES', licences.join('\n----\n\n'))
