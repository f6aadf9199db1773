import t from 'tap'
import { MEANT } from '../../src/cli/did-you-mean.js'
import { table } from '../../src/cli/table.js'
import {
  done,
  mustBeDone,
  mustBeRefused,
  type Outcome,
  PROGRAM,
  refused,
  run,
  thinfs,
  thinfsAll,
} from './command-line.js'

/** Each command with arguments that are right but for the pool, which is not there. */
const COMMANDS = {
  init: null, // makes what is not there
  adopt: null, // of another program's pool
  mount: ['/none', '/none'],
  umount: ['/none'],
  restart: ['/none'],
  create: ['/none', 'web', '--size', '1G'],
  snapshot: ['/none', 'web', 'web2'],
  rollback: ['/none', 'web', 'web2'],
  remove: ['/none', 'web', '--yes'],
  prune: ['/none', 'web', '--keep-last', '3', '--yes'],
  rename: ['/none', 'web', 'web2'],
  resize: ['/none', 'web', '-1G'],
  trim: ['/none', 'web'],
  extend: ['/none', '--data', '+1G'],
  shrink: ['/none', '--data', '1G'],
  set: ['/none', 'on_full=error'],
  list: ['/none'],
  status: ['/none'],
  message: ['/none', 'create_thin', '0'],
  stats: ['/none'],
  top: ['/none'],
  events: ['/none'],
  metrics: ['/none'],
  serve: ['/none'],
  send: ['/none', 'web'],
  receive: ['/none', 'web'],
  import: ['/none', '/none/disk.qcow2', 'web'],
  export: ['/none', 'web', '/none/disk.qcow2'],
  delta: ['/none', 'web', 'web2'],
  map: ['/none', 'web'],
  rmap: ['/none', '5..45'],
  dump: ['/none'],
  table: ['/none'],
  attach: ['/none', 'web'],
  detach: ['/none', 'web'],
  'mount-volume': ['/none', 'web', '/none'],
  'umount-volume': ['/none', 'web'],
  check: ['/none'],
  repair: ['/none'],
  restore: ['/none'],
  rescue: ['/none', '/'],
  run: null, // makes a pool
  record: ['/none', 'web'],
  replay: ['/none', 'web', '--each-flush', 'true'],
  inject: ['/none', 'web'],
}

t.test('help lists the commands, and knows its version', async t => {
  const help = await done(t, '--help')
  const listed = [...help.matchAll(/^ {2}([a-z-]+) \[options\]/gm)].map(([, name]) => name)
  // The service is of no pool: test/dm. Nor does the doctor need one: test/doctor; `attached`
  // neither: test/mount.
  const others = ['attached', 'dm', 'doctor', 'pools', 'completion']
  t.strictSame(listed, [...Object.keys(COMMANDS), ...others])
  t.match(await done(t, '--version'), /^\d+\.\d+\.\d+\n$/)
})

t.test('every command has help, and refuses what is wrong in one line', async t => {
  const lines: string[][] = []
  const checks: ((outcome: Outcome, line: string[]) => void)[] = []
  const expect = (line: string[], check: (typeof checks)[number]): void => {
    lines.push(line)
    checks.push(check)
  }
  for (const [name, args] of Object.entries(COMMANDS)) {
    const refuses = (status: number, stderr: RegExp, ...line: string[]): void =>
      expect([name, ...line], (outcome, line) => mustBeRefused(t, outcome, status, stderr, line))
    expect([name, '--help'], (outcome, line) => {
      const help = mustBeDone(t, outcome, line)
      t.match(help, /^ {2}--json /m, name)
      t.match(help, new RegExp(`^Example:\\n  \\$ .*thinfs ${name} `, 'm'))
    })
    const see = `; see thinfs ${name} --help \\(BAD_ARGUMENT\\)\\n$`
    const unknown = new RegExp(`unknown option '--frobnicate'${see}`)
    refuses(2, unknown, ...(args ?? ['/none']), '--frobnicate')
    refuses(2, new RegExp(`(missing required argument|required option) .*${see}`))
    if (args === null) continue
    // As a shell makes it of a variable that is not set.
    refuses(2, /: [A-Z]+ is empty \(BAD_ARGUMENT\)\n$/, '', ...args.slice(1))
    refuses(1, /^thinfs: \/none: .* \(NOT_A_POOL\)\n$/, ...args)
    expect([name, ...args, '--json'], ({ status, stdout, stderr }, line) => {
      t.same({ status, stdout }, { status: 1, stdout: '' }, line.join(' '))
      t.match(JSON.parse(stderr), {
        error: { code: 'NOT_A_POOL', errno: 'ENOENT', message: /^\/none: / },
      })
    })
  }
  const outcomes = await thinfsAll(lines)
  t.equal(outcomes.length, lines.length)
  for (const [i, outcome] of outcomes.entries()) checks[i]!(outcome, lines[i]!)
})

t.test('an unknown command is refused with the one it looks like', async t => {
  const line =
    /unknown command 'snapshto' \(Did you mean snapshot\?\); see thinfs --help \(BAD_ARGUMENT\)$/m
  await refused(t, 2, line, 'snapshto')
})

t.test('the name that a command has elsewhere leads to it by its meaning', async t => {
  const meant = /unknown command 'destroy' \(Did you mean remove\?\); see thinfs --help \(BAD_AR/
  await refused(t, 2, meant, 'destroy', '/none', 'web')
  await refused(t, 2, meant, 'help', 'destroy')
  for (const [name, means] of Object.entries(MEANT)) {
    t.ok(Object.hasOwn(COMMANDS, means) || means === 'pools', means)
    t.notOk(Object.hasOwn(COMMANDS, name), name)
  }
})

t.test('help X is the help of X, and an unknown X is one line', async t => {
  t.equal(await done(t, 'help', 'list'), await done(t, 'list', '--help'))
  t.equal(await done(t, 'help'), await done(t, '--help'))
  const line =
    /unknown command 'lst' \(Did you mean list\?\); see thinfs --help \(BAD_ARGUMENT\)\n$/
  for (const args of [
    ['help', 'lst'],
    ['lst', '--help'],
    ['lst', 'x', '--json'],
  ]) {
    if (args.includes('--json')) t.equal((await thinfs(...args)).status, 2)
    else await refused(t, 2, line, ...args)
  }
})

t.test('a misspelt option is named, though one that is needed is missing', async t => {
  const line = "unknown option '--sise'"
  await refused(t, 2, line, 'create', '/none', 'web', '--sise', '1G')
  // As lvcreate has it: it must not be taken for the question which version this is.
  await refused(t, 2, "unknown option '-V'", 'create', '/none', 'web', '-V', '1G')
})

t.test('a command line that is wrong is JSON, too, when that was asked for', async t => {
  const { status, stderr } = await thinfs('list', '/none', '--json', '--frobnicate')
  t.equal(status, 2)
  t.match(JSON.parse(stderr), {
    error: { code: 'BAD_ARGUMENT', errno: 'EINVAL', message: /--frobnicate/ },
  })
})

t.test('output that cannot be written is one line, and a reader that left is none', async t => {
  const full = await run('sh', '-c', '"$0" "$@" > /dev/full', process.execPath, PROGRAM, '--help')
  t.match(full, {
    status: 1,
    stderr: /^thinfs: standard output: no space left on device \(IO_ERROR\)\n$/,
  })
  const closed = await run('sh', '-c', '"$0" --help >&-', PROGRAM)
  t.match(closed, {
    status: 1,
    stderr: 'thinfs: standard output: it is closed (IO_ERROR)\n',
  })
  const left = await run('sh', '-c', '"$0" "$@" | true', process.execPath, PROGRAM, '--help')
  t.same(left, { status: 0, stdout: '', stderr: '' })
})

t.test('what would act on a terminal does not reach it', async t => {
  await refused(t, 1, /^thinfs: \/no \[2Jne\\u202e: /, 'list', '/no\x1b[2Jne\u202e')
  t.equal(table([['a\x1bb', 'c\nd']]), 'a\\x1bb  c\\x0ad')
})

t.test('no command at all is a request for help that fails', async t => {
  const { status, stdout, stderr } = await thinfs()
  t.strictSame({ status, stdout }, { status: 2, stdout: '' })
  t.match(stderr, /^Usage: thinfs/)
})
