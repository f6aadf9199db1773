// Goal: what `thinfs doctor` says of a machine is so, and what it says to do mends it. Method: the
// things that it looks at are spoilt in a mount namespace of a user's; then the command that it
// prints runs there.
import { existsSync, readFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import t, { type Test } from 'tap'
import type { Finding } from '../../src/doctor/index.js'
import { refused, thinfs } from '../cli/command-line.js'
import { needs, type Outcome } from '../support/mounted-pool.js'
import { OrdinaryUser } from '../support/ordinary-user.js'

const onMount = needs('/dev/fuse')
const ENABLE_URING = '/sys/module/fuse/parameters/enable_uring'

/** What the doctor found, by what it looked at. */
class Diagnosis {
  readonly outcome: Outcome
  readonly canMount: boolean
  readonly #checks: Map<string, Finding>

  constructor(outcome: Outcome) {
    const { canMount, checks } = JSON.parse(outcome.stdout)
    this.outcome = outcome
    this.canMount = canMount
    this.#checks = new Map((checks as Finding[]).map(check => [check.check, check]))
  }

  get(check: string): Finding {
    return this.#checks.get(check)!
  }

  get failed(): string[] {
    return [...this.#checks.values()].filter(({ state }) => state === 'fail').map(f => f.check)
  }
}

const ask = async (user: OrdinaryUser, before = '', after = ''): Promise<Diagnosis> =>
  new Diagnosis(await user.attempt(`${before} thinfs doctor ${after} --json`))

/** Does as root what the doctor says; here sudo is what nsenter is. */
async function follow(t: Test, user: OrdinaryUser, { check, mend }: Finding): Promise<void> {
  t.type(mend, 'string', check)
  await user.root(mend!.replaceAll('sudo ', '').replace(/;.*/, ''))
}

t.test('an ordinary user, whose machine is mended step by step', onMount, async t => {
  const user = await OrdinaryUser.make(t)
  await user.root('chmod 600 /dev/fuse')
  await user.sh('thinfs init pool --data-size 16M')

  const closed = await ask(user, '', 'pool')
  t.match(closed.outcome, {
    status: 1,
    stderr: '"message":"a pool cannot be mounted here: see /dev/fuse, mount"',
  })
  t.same(closed.failed, ['/dev/fuse', 'mount'])
  t.match(closed.get('/dev/fuse').found, 'mode 600 of user 0')
  const mount = await user.attempt('mkdir mnt; thinfs mount pool mnt')
  t.match(mount, { status: 1, stderr: /failed to open \/dev\/fuse: .*; thinfs doctor says/ })
  const inNamespace = await user.attempt('unshare -Urm thinfs mount pool mnt')
  t.match(inNamespace, {
    status: 1,
    stderr: /\/dev\/fuse cannot be opened \(EACCES\); thinfs doctor/,
  })
  await follow(t, user, closed.get('/dev/fuse'))

  // All else that is wrong here, and what there is to do about it.
  const hasUring = existsSync(ENABLE_URING)
  if (hasUring) await user.root(`echo N > own/uring; mount --bind own/uring ${ENABLE_URING}`)
  const short = (await user.sh('echo "$PATH"')).replaceAll(/:[^:]*sbin/g, '')
  const open = await ask(user, `PATH=${short}`, 'pool')
  t.match(open, { canMount: true, failed: [], outcome: { status: 0, stderr: '' } })
  t.match(open.get('mount'), { state: 'ok', found: 'by fusermount3' })
  t.match(open.get('pool'), { state: 'ok', found: `${user.home}/pool/pool.yaml` })
  t.match(open.get('holes'), { state: 'ok', found: `${user.home}/pool: ` })
  t.match(open.get('loop devices'), { state: 'warn', mend: /^fuse2fs/ })
  t.match(open.get('IO_FLUSHER'), { state: 'ok', found: /CAP_SYS_RESOURCE/ })
  const toMend = ['allow_other', ...(hasUring ? ['fuse.enable_uring'] : [])]
  for (const check of toMend) {
    t.match(open.get(check), { state: 'warn' }, check)
    await follow(t, user, open.get(check))
  }
  const hidden = open.get('e2fsprogs')
  t.match(hidden, { state: 'warn', mend: /^export PATH=/ })
  const mended = await ask(user, `PATH=${short}; ${hidden.mend};`)
  for (const check of [...toMend, 'e2fsprogs']) t.match(mended.get(check), { state: 'ok' }, check)
  await user.sh('thinfs mount pool mnt -o allow_other; thinfs umount pool')

  t.equal(await user.sh('ls -A ~/tmp'), '', 'no folder is left')
  t.notMatch(await user.sh('cat /proc/self/mounts'), /thinfs-doctor/, 'nor a mount')
  t.notMatch(await user.sh('ls -A pool'), /doctor/)
})

t.test('without fusermount3 there is a namespace of his own', onMount, async t => {
  const user = await OrdinaryUser.make(t)
  const path = await user.sh('command -v fusermount3')
  await user.root(`touch ${user.own}/not; mount --bind ${user.own}/not ${path}`)
  const without = await ask(user)
  t.same(without.failed, ['mount'])
  t.match(without.get('mount'), {
    found: /fusermount3 cannot be run \(EACCES\)/,
    mend: /unshare -Urm$/,
  })
  t.match(without.get('fuse3'), { state: 'warn', mend: /install fuse3$/ })
  t.match(without.get('user namespace'), { state: 'ok' })
  await user.root(
    `umount ${path}; cp -p ${path} own/not; chmod 755 own/not; mount --bind own/not ${path}`,
  )
  const bare = (await ask(user)).get('mount')
  t.match(bare, { state: 'fail', mend: /chmod u\+s .*; or unshare -Urm$/ })
  await follow(t, user, bare)
  t.match((await ask(user)).get('mount'), { state: 'ok' })
  const within = await ask(user, 'unshare -Urm')
  t.match(within, { canMount: true, outcome: { status: 0 } })
  t.match(within.get('mount').found, 'as root of a user namespace')
  // A user whom the namespace does not know is shown as everybody else.
  const nobody = await user.attempt('unshare -U thinfs doctor')
  t.match(nobody, {
    status: 1,
    stdout: '',
    stderr: /^thinfs: [^\n]+unshare -Urm \(NOT_TRUSTED\)\n$/,
  })
})

t.test('a user without a name', onMount, async t => {
  const user = await OrdinaryUser.make(t)
  await user.root('grep -v ^thinfs-test: own/passwd > tmp/passwd; cat tmp/passwd > own/passwd')
  const nameless = await ask(user)
  t.same(nameless.failed, ['mount'])
  t.match(nameless.get('mount'), {
    found: /username, .*\/etc\/passwd$/,
    mend: /; or unshare -Urm$/,
  })
  t.same((await ask(user, 'unshare -Urm')).failed, [])
  await follow(t, user, nameless.get('mount'))
  t.same((await ask(user)).failed, [])
})

t.test('root of a container, who may not mount', onMount, async t => {
  const user = await OrdinaryUser.make(t)
  const asContainer = async (command: string): Promise<Diagnosis> => {
    const caps = '--bounding-set=-sys_admin --inh-caps=-all'
    const output = await user.root(`setpriv ${caps} ${command} --json 2> tmp/stderr || true`)
    return new Diagnosis({ status: 0, stdout: output, stderr: '' })
  }
  const found = await asContainer('thinfs doctor')
  t.same(found.failed, ['mount'])
  t.match(found.get('mount'), { found: /--cap-add SYS_ADMIN$/, mend: 'unshare -Urm' })
  t.same((await asContainer(`${found.get('mount').mend} thinfs doctor`)).failed, [])
  // A namespace has a limit of its own for those in it.
  const none = 'echo 0 > /proc/sys/user/max_user_namespaces'
  const limited = (mend: string): Promise<Diagnosis> =>
    ask(user, `unshare -Urm sh -c '${none}; ${mend} > /dev/null; exec "$@"' sh`)
  const namespace = (await limited('true')).get('user namespace')
  t.match(namespace, { state: 'warn', mend: 'sudo sysctl user.max_user_namespaces=15000' })
  const mended = await limited(namespace.mend!.replace('sudo ', ''))
  t.match(mended.get('user namespace'), { state: 'ok' })
})

t.test('what it says of the pool and its file system', onMount, async t => {
  const user = await OrdinaryUser.make(t)
  await user.root(`cd ${user.home}; mkdir ram
    mount -t ramfs thinfs-test ram; mount -t tmpfs thinfs-test tmp
    chmod 777 ram tmp`)
  t.match((await ask(user, '', 'ram')).get('holes'), { state: 'warn', found: /makes none/ })
  t.match((await ask(user, '', 'tmp')).get('holes'), { state: 'ok' })
  await user.sh('thinfs init pool --data-size 16M; chmod g+w pool/pool.yaml')
  const open = await ask(user, '', 'pool')
  t.match(open, { canMount: false, outcome: { status: 1 } })
  t.match(open.get('pool'), { state: 'fail', found: /mode 620.*\(NOT_TRUSTED\)$/ })
})

t.test('as root, against what the machine itself says', onMount, async t => {
  const { stdout, stderr } = await thinfs('doctor', tmpdir(), '--json')
  const found = new Diagnosis({ status: 0, stdout, stderr })
  t.match(found.get('mount'), { state: 'ok', found: 'mount(2), as root' })
  const isOn = existsSync(ENABLE_URING) && readFileSync(ENABLE_URING, 'utf8') === 'Y\n'
  t.equal(found.get('fuse.enable_uring').state, isOn ? 'ok' : 'warn')
  const table = await thinfs('doctor')
  t.match(table, { status: 0, stderr: '', stdout: /^CHECK +STATE +FOUND +TO DO\n/ })
  t.match(table.stdout, /^\/dev\/fuse +ok +can be opened +-$/m)
  await refused(t, 1, /^thinfs: \/none: .* \(NOT_A_POOL\)\n$/, 'doctor', '/none')
  await refused(t, 2, /--frobnicate/, 'doctor', '--frobnicate')
})
