/**
 * Goal: commands that take long say on a terminal how far they are, and nowhere else. Method: a
 * pseudo-terminal of script(1), and a clock that makes everything take long, or no time at all.
 */
import { closeSync, openSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { checkServed } from '../../src/cli/check.js'
import type { CheckReport, PoolStatus } from '../../src/volumes/index.js'
import { done, PROGRAM, run } from './command-line.js'

const NR_MAPPINGS = 4000
const BLOCK = 65536

/** NODE_OPTIONS by which `performance.now` is a function of what it was. */
const clock = (now: string): string =>
  `NODE_OPTIONS=--import=data:text/javascript,${encodeURIComponent(
    `const now = performance.now.bind(performance); performance.now = () => ${now}`,
  )}`
const SLOW = clock('1e6 * now()')
const NO_TIME = clock('0')

/** Virtual blocks that follow each other, in data blocks that do not. */
function xmlOf(nr: number): string {
  const lines = Array.from({ length: nr }, (_, i) => {
    return `<single_mapping origin_block="${i}" data_block="${2 * i}" time="0"/>`
  })
  return `<superblock uuid="" time="0" transaction="0" flags="0" version="2" data_block_size="128" nr_data_blocks="16384">
<device dev_id="0" mapped_blocks="${nr}" transaction="0" creation_time="0" snap_time="0">
${lines.join('\n')}
</device>
</superblock>
`
}

t.test('dump and check show progress on a terminal', async t => {
  const pool = join(t.testdir({}), 'pool')
  await done(t, 'init', pool, '--data-size', '1G')
  const input = join(pool, 'dump.xml')
  writeFileSync(input, xmlOf(NR_MAPPINGS))
  await done(t, 'restore', pool, '-i', input)
  const data = openSync(join(pool, 'data'), 'r+')
  writeSync(data, Buffer.alloc(BLOCK, 1), 0, BLOCK, 2 * BLOCK)
  closeSync(data)

  /** What a terminal gets, with ! where a line of progress is taken away. */
  const onTerminal = async (time: string, command: string): Promise<string> => {
    const line = `${process.execPath} ${PROGRAM} ${command}`
    const { status, stdout } = await run('env', time, 'script', '-qec', line, '/dev/null')
    t.equal(status, 0, stdout)
    return stdout.replaceAll('\r\x1b[K', '!')
  }
  const cases: [command: string, ...shown: RegExp[]][] = [
    [`dump ${pool} > ${pool}/xml`, /!dumping: [1-9]\d?%!/],
    [`check ${pool}`, /!checking metadata: [1-9]\d?%!/],
    [`check ${pool} --deep`, /!checking metadata: /, /!checking data: \d+%!/],
  ]
  for (const [command, ...shown] of cases) {
    const slow = await onTerminal(SLOW, command)
    for (const what of shown) t.match(slow, what, command)
    t.notMatch(await onTerminal(NO_TIME, command), /[!%]/, `${command}, in no time`)
    const plain = await run('env', SLOW, 'sh', '-c', `${process.execPath} ${PROGRAM} ${command}`)
    t.match(plain, { status: 0, stderr: /^$/ }, `${command}, without a terminal`)
    t.notMatch(plain.stdout, /%/)
  }
  const dumped = await onTerminal(SLOW, `dump ${pool}`)
  t.notMatch(dumped, /!/, 'not in the midst of a dump that is shown')
  t.match(dumped, /<\/superblock>/)
})

t.test('check of a mounted pool shows what the status says', async t => {
  const shown = t.capture(process.stderr, 'write', () => true)
  t.intercept(process.stderr, 'isTTY', { value: true, configurable: true })
  const now = performance.now.bind(performance)
  t.capture(performance, 'now', () => 1e6 * now())
  let asked = 0
  let end: (report: CheckReport) => void
  const report = { problems: [] as CheckReport['problems'] } as CheckReport
  const admin = {
    check: () =>
      new Promise<CheckReport>(resolve => {
        end = resolve
      }),
    async status() {
      if (++asked === 2) end(report)
      return { check: { part: 'data', done: asked, all: 8 } } as PoolStatus
    },
  }
  t.equal(await checkServed(admin, true), report)
  const texts = shown().map(({ args: [text] }) => text)
  t.match(texts, ['\r\x1b[Kchecking data: 12%', '\r\x1b[Kchecking data: 25%', '\r\x1b[K'])
})
