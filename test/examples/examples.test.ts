// Goal: the scripts in examples/ do what they say, as they are, and leave nothing. Method: each
// runs in a mount namespace, as root or as an ordinary user; what it prints is held against what it
// claims.
import { readdirSync, readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import t, { type Test } from 'tap'
import { parse } from 'yaml'
import { needs } from '../support/mounted-pool.js'
import { OrdinaryUser } from '../support/ordinary-user.js'

const ROOT = resolve(import.meta.dirname, '../..')
const EXAMPLES = join(ROOT, 'examples')
const onMount = needs('/dev/fuse')
const onLoop = needs('/dev/fuse', '/dev/loop-control')

/** Nothing is mounted, and no file is left, where examples work. */
async function leavesNothing(t: Test, user: OrdinaryUser): Promise<void> {
  t.equal(await user.root('ls tmp home/tmp'), 'home/tmp:\n\ntmp:')
  t.equal(await user.root(`grep -F ' ${user.base}/tmp/' /proc/self/mounts || true`), '')
  t.equal(await user.root(`grep -F ' ${user.home}/' /proc/self/mounts || true`), '')
}

t.test('docs/EXAMPLES.md has a line for each', async t => {
  const page = readFileSync(join(ROOT, 'docs/EXAMPLES.md'), 'utf8')
  for (const name of readdirSync(EXAMPLES)) t.ok(page.includes(`\`${name}\``), name)
})

t.test('with root: quickstart.sh, filesystems.sh, snapshot-per-test.sh', onLoop, async t => {
  const user = await OrdinaryUser.make(t)
  const quickstart = await user.root(`sh ${EXAMPLES}/quickstart.sh`)
  t.match(quickstart, 'before: version one, now: version two\n')
  const mapped = [...quickstart.matchAll(/^web +\d+ +10G +([\d.]+)M /gm)].map(([, mib]) =>
    Number(mib),
  )
  t.equal(mapped.length, 2)
  t.ok(mapped[0]! > 20 && mapped[1]! < mapped[0]! - 15, `${mapped} MiB`)
  t.match(quickstart, /\nthe metadata is the kernel's$/)

  for (const kind of ['ext4', 'xfs', 'btrfs']) {
    if (!(await canMount(user, kind))) continue
    const line = await user.root(`sh ${EXAMPLES}/filesystems.sh ${kind}`)
    const [, empty, full, without] =
      /^(?:[\s\S]*\n)?\w+: (\d+) MiB after mkfs, (\d+) with a file of 24, (\d+) without$/
        .exec(line)!
        .map(Number)
    t.ok(full! >= empty! + 24 && without! < empty! + 16, line)
  }

  const perTest = await user.root(`sh ${EXAMPLES}/snapshot-per-test.sh`)
  t.match(perTest, /deletes: passed[\s\S]*appends: passed[\s\S]*reads-last: passed/)
  t.match(perTest, /\nNAME [^\n]*\nbase [^\n]*\s*$/, 'the base alone is left')
  await leavesNothing(t, user)
})

/** A module that is not loaded yet is not listed. */
const canMount = async (user: OrdinaryUser, kind: string): Promise<boolean> =>
  (await user.root(`modprobe ${kind} 2>/dev/null || true; cat /proc/filesystems`))
    .split('\n')
    .includes(`\t${kind}`)

t.test('without root: rootless.sh', onMount, async t => {
  const user = await OrdinaryUser.make(t)
  const wanted = [
    /\nbefore: version one\nnow: version two\n/,
    /\nthe copy is the same\n/,
    /\nImages are identical\.\n3\nvirtual size: 256 MiB/,
    /\nweb +\d+ +256M /,
    /\nthe metadata is the kernel's$/,
  ]
  const path = await user.sh('command -v fusermount3')
  for (const within of ['', 'unshare -Urm']) {
    if (within !== '') await user.root(`touch own/not; mount --bind own/not ${path}`)
    const said = await user.sh(`${within} sh ${EXAMPLES}/rootless.sh`)
    for (const line of wanted) t.match(said, line, within)
    const [, full, after] = /(\d+) MiB before the discard, (\d+) after/.exec(said)!.map(Number)
    t.ok(full! > 32 && after! < 25, `${full}, ${after} MiB`)
  }
  await leavesNothing(t, user)
})

t.test('without root: golden-image.sh, ci-workflow.yml', onMount, async t => {
  const user = await OrdinaryUser.make(t)
  const golden = await user.sh(`sh ${EXAMPLES}/golden-image.sh`)
  t.match(golden, 'golden is named golden\nvm-100 is named vm-100\n')
  const [, disks, mib] = /^(\d+) disks of 4G .* in (\d+) MiB$/m.exec(golden)!.map(Number)
  t.equal(disks, 101)
  t.ok(mib! < 200, `${mib} MiB`)

  // The workflow installs it.
  await user.root('rm own/thinfs')
  await user.root(`printf '#!/bin/sh\\nexec "$@"\\n' > own/sudo; chmod 755 own/sudo`)
  await user.sh(`mkdir work && ln -s "$1" work/thinfs && touch path`, ROOT)
  const { steps } = parse(readFileSync(join(EXAMPLES, 'ci-workflow.yml'), 'utf8')).jobs.tests
  const said: string[] = []
  for (const { run } of steps.filter((step: { run?: string }) => step.run !== undefined)) {
    const before = 'export GITHUB_PATH=~/path PATH="$(paste -sd: ~/path):$PATH"; cd work'
    said.push(await user.sh(`${before}; bash -e -c "$1"`, run))
  }
  t.match(said.join('\n'), /(1000\n[\s\S]*){3}/)
  await leavesNothing(t, user)
})

t.test('thinfs@.service, thinfs-attach@.service: what they run', onLoop, async t => {
  const user = await OrdinaryUser.make(t)
  const read = (name: string): string =>
    readFileSync(join(EXAMPLES, name), 'utf8').replaceAll(
      /^(Exec\w+=)thinfs /gm,
      `$1${user.own}/thinfs `,
    )
  const [pool, attach] = [read('thinfs@.service'), read('thinfs-attach@.service')]
  // As systemd reads a line: %I is the instance, %% and $$ are one.
  const command = (unit: string, key: string, instance: string): string =>
    new RegExp(`^${key}=(.*)$`, 'm')
      .exec(unit)![1]!
      .replaceAll('%I', instance)
      .replaceAll('%%', '%')
      .replaceAll('$$', '$')
  await user.root(`for folder in srv mnt; do mount -t tmpfs -o mode=755 thinfs-test /$folder; done
    mkdir -p /run/thinfs; mount -t tmpfs thinfs-test /run/thinfs
    thinfs init /srv/example --data-size 1G --volume web=64M
    mkdir units; cat > units/thinfs@.service <<'END'
${pool}
END
    cat > units/thinfs-attach@.service <<'END'
${attach}
END
    systemd-analyze verify ./units/thinfs@example.service ./units/thinfs-attach@example-web.service`)
  // A server on another machine may come up later than this one.
  t.match(pool, /^After=.*\bnetwork-online\.target$/m)
  const [ofUnit, ofService] = pool.split(/^\[Service\]$/m)
  t.match(ofUnit, /^StartLimitIntervalSec=0$/m, 'systemd does not give up')
  t.match(ofService, /^RestartSec=[1-9]/m)
  const start = `${command(pool, 'ExecStart', 'example')} > log 2>&1 &
    until grep -E 'INFO.*(mounted|took over)' log; do sleep 0.2; done`
  await user.root(`${command(pool, 'ExecStartPre', 'example')}; ${start}`)
  await user.root(command(attach, 'ExecStart', 'example/web'))
  const line = /^# +(\/run\/thinfs\/POOL\/VOLUME .*)$/m
    .exec(attach)![1]!
    .replaceAll('POOL', 'example')
    .replaceAll('VOLUME', 'web')
  await user.root(`mkfs.ext4 -q /run/thinfs/example/web; mkdir /srv/web
    echo '${line}' > fstab; mount -T fstab /srv/web; echo kept > /srv/web/file; sync -f /srv/web`)
  const pid = await user.root('thinfs status /srv/example --json | grep -m 1 ""pid"" | tr -dc 0-9')
  await user.root(`kill -9 ${pid}; while [ -e /proc/${pid} ]; do sleep 0.1; done; ${start}`)
  t.equal(await user.root('cat /srv/web/file; umount /srv/web'), 'kept')
  await user.root(command(attach, 'ExecStop', 'example/web'))
  t.equal(await user.root('ls /run/thinfs'), '')
  // One that somebody has mounted by hand goes, too.
  const other = /^# +(\/mnt\/NAME\/web .*)$/m.exec(pool)![1]!.replaceAll('NAME', 'example')
  await user.root(`echo '${other}' > fstab; mount -T fstab /srv/web`)
  await user.root(command(pool, 'ExecStop', 'example'))
  t.equal(await user.root('grep -E "/mnt/example|/srv/web" /proc/self/mounts || true'), '')
})

t.test('pacemaker-agent.sh, thinfs-take-over@.service', onMount, async t => {
  const user = await OrdinaryUser.make(t)
  const unit = readFileSync(join(EXAMPLES, 'thinfs-take-over@.service'), 'utf8')
  const found =
    await user.root(`for folder in srv mnt; do mount -t tmpfs -o mode=755 thinfs-test /$folder; done
    mkdir -p /run/thinfs; mount -t tmpfs thinfs-test /run/thinfs
    thinfs init /srv/example --data-size 1G --volume web=64M > said
    echo 'tenancy: { fence: { command: ["true"] } }' >> /srv/example/pool.yaml
    export OCF_RESKEY_pool=/srv/example OCF_RESKEY_mountpoint=/mnt/pool
    agent() { status=0; sh ${EXAMPLES}/pacemaker-agent.sh "$1" > said 2>&1 || status=$?; echo "$1 $status"; }
    agent monitor; agent start; agent start; agent monitor; agent stop; agent stop; agent monitor
    OCF_RESKEY_mountpoint=relative agent validate-all; agent promote; agent meta-data
    python3 -c 'from xml.dom.minidom import parse; parse("said")'
    # The record names nobody any more: the pool is lost.
    agent start
    dd if=/dev/zero of=/srv/example/tenant bs=4096 count=1 conv=notrunc status=none
    until agent monitor | grep -q 1; do sleep 0.1; done
    agent monitor; agent stop; agent monitor`)
  t.same(found.split('\n'), [
    ...['monitor 7', 'start 0', 'start 0', 'monitor 0', 'stop 0', 'stop 0', 'monitor 7'],
    ...['validate-all 6', 'promote 3', 'meta-data 0'],
    ...['start 0', 'monitor 1', 'stop 0', 'monitor 7'],
  ])
  const line = (key: string): string =>
    new RegExp(`^${key}=(.*)$`, 'm').exec(unit)![1]!.replaceAll('%I', 'example')
  const verified = unit.replaceAll(/^(Exec\w+=)thinfs /gm, `$1${user.own}/thinfs `)
  await user.root(`mkdir units; cat > units/thinfs-take-over@.service <<'END'
${verified}
END
    systemd-analyze verify ./units/thinfs-take-over@example.service
    ${line('ExecStartPre')}; ${line('ExecStart')}
    thinfs status /mnt/example | grep -q '^tenancy '
    ${line('ExecStop')}`)
  t.equal(await user.root('grep -E "/mnt/(pool|example)" /proc/self/mounts || true'), '')
})

t.test('pacemaker-agent.sh: a mount point however it is written', onMount, async t => {
  const user = await OrdinaryUser.make(t)
  const found = await user.root(`for folder in srv mnt; do
      mount -t tmpfs -o mode=755 thinfs-test /$folder
    done
    mkdir -p /run/thinfs /mnt/pool; mount -t tmpfs thinfs-test /run/thinfs; ln -s pool /mnt/link
    ln -s /mnt /srv/mnt
    thinfs init /srv/example --data-size 1G --volume web=64M > said
    echo 'tenancy: { fence: { command: ["true"] } }' >> /srv/example/pool.yaml
    export OCF_RESKEY_pool=/srv/example
    agent() { status=0; sh ${EXAMPLES}/pacemaker-agent.sh "$1" > said 2>&1 || status=$?; }
    while read -r OCF_RESKEY_mountpoint; do
      export OCF_RESKEY_mountpoint
      line=$OCF_RESKEY_mountpoint
      for action in monitor start monitor stop monitor; do agent $action; line="$line $status"; done
      printf '%s %s\\n' "$line" "$(grep -c ' fuse.thinfs ' /proc/self/mounts)"
    done <<'END'
/mnt/pool/
/mnt/./pool//
/mnt/link
/mnt/link/
/srv/mnt/pool
/mnt/a folder
/mnt/not\\040a space
END`)
  for (const line of found.split('\n')) t.match(line, / 7 0 0 0 7 0$/, line)
  t.equal(found.split('\n').length, 7)
})

t.test('pacemaker-agent.sh: what it refuses, and a mount that nobody serves', onMount, async t => {
  const user = await OrdinaryUser.make(t)
  const found = await user.root(`for folder in srv mnt; do
      mount -t tmpfs -o mode=755 thinfs-test /$folder
    done
    mkdir -p /run/thinfs /srv/empty; mount -t tmpfs thinfs-test /run/thinfs
    thinfs init /srv/example --data-size 1G --volume web=64M > said
    echo 'tenancy: {}' >> /srv/example/pool.yaml
    export OCF_RESKEY_pool=/srv/example OCF_RESKEY_mountpoint=/mnt/pool
    agent() { status=0; sh ${EXAMPLES}/pacemaker-agent.sh "$1" > said 2>&1 || status=$?; echo "$1 $status"; }
    agent validate-all; OCF_RESKEY_pool=/srv/example/pool.yaml agent validate-all
    for OCF_RESKEY_pool in /srv/empty /srv/nothing; do agent validate-all; agent monitor; agent stop; done
    OCF_RESKEY_pool=/srv/example
    # A cluster without fencing; a setting that nobody has made is true.
    mkdir bin; export PATH="$PWD/bin:$PATH"
    for set in false off true ''; do
      printf '#!/bin/sh\necho "%s"\n' "$set" > bin/crm_attribute; chmod 755 bin/crm_attribute
      agent validate-all; agent start; agent stop
    done
    echo fenced_by=thinfs; echo 'echo false' >> bin/crm_attribute
    OCF_RESKEY_fenced_by=thinfs agent validate-all
    agent start
    thinfs status /mnt/pool --json > status
    for pid in $(grep -E '"(pid|enginePid)"' status | tr -dc '0-9\n'); do kill -9 $pid; done
    agent monitor; agent stop; agent monitor`)
  t.same(found.split('\n'), [
    ...['validate-all 0', 'validate-all 0'],
    ...['validate-all 5', 'monitor 7', 'stop 0', 'validate-all 5', 'monitor 7', 'stop 0'],
    ...['validate-all 6', 'start 6', 'stop 0', 'validate-all 6', 'start 6', 'stop 0'],
    ...['validate-all 0', 'start 0', 'stop 0', 'validate-all 0', 'start 0', 'stop 0'],
    ...['fenced_by=thinfs', 'validate-all 0'],
    ...['start 0', 'monitor 1', 'stop 0', 'monitor 7'],
  ])
})
