// Goal: without root all commands work but those on loop devices, by fusermount3 and in a user
// namespace alike, and files belong to whoever made them. Method: the same script both ways;
// stat(1), the kernel's own checks of permissions, thin_check.
import t from 'tap'
import { needs } from '../support/mounted-pool.js'
import { OrdinaryUser } from '../support/ordinary-user.js'

const onMount = needs('/dev/fuse')

const COMMANDS = `
thinfs init pool --data-size 256M --volume web=16M
mkdir -p mnt
thinfs mount pool mnt
owner() { stat -c '%U %a %n' "$@" | sed "s/^$(id -un) /mine /"; }
seq 1000 | dd of=mnt/web conv=notrunc,fsync status=none
thinfs create pool a --size 8M
truncate -s 8M mnt/b
thinfs snapshot pool web snap
thinfs resize pool a 12M
thinfs rename pool a c
thinfs message pool "create_thin 9"
thinfs remove pool b --yes
mv mnt/snap mnt/copy
cp --sparse=always mnt/web mnt/web2
chmod 640 mnt/web2
owner mnt mnt/*
cmp mnt/web mnt/copy
thinfs list pool --json | grep '"name"'
thinfs status mnt | grep '^mode'
thinfs check mnt --deep | head -1
thinfs restart pool
cmp mnt/web mnt/web2
thinfs attach pool web 2>&1 && exit 1
thinfs umount mnt
thin_check -q pool/metadata
thinfs check pool | head -1
`

t.test('every command', onMount, async t => {
  const user = await OrdinaryUser.make(t)
  const outside = await user.sh(COMMANDS)
  t.match(outside, 'mine 755 mnt\nmine 600 mnt/c\nmine 600 mnt/copy\nmine 600 mnt/thin-9\n')
  t.match(outside, 'mine 600 mnt/web\nmine 640 mnt/web2\n')
  t.match(outside, /\nmode +write\n5 devices, \d+ mappings/)
  const instead = 'use the file itself: mkfs.ext4, fuse2fs -o fakeroot, guestmount, qemu-nbd'
  const refusal = `loop devices need root; without it ${instead} (NOT_SUPPORTED)`
  t.match(outside, `\nthinfs: ${user.home}/mnt/web: ${refusal}\n`)
  const dm = await user.attempt('thinfs dm')
  t.match(dm, { status: 1, stderr: 'thinfs: thinfs dm needs root (NOT_SUPPORTED)' })
  await user.sh('mv pool outside')
  t.equal(await user.sh('unshare -Urm bash --norc -euo pipefail -c "$1"', COMMANDS), outside)
})

t.test('a pool belongs to its owner wherever he mounts it', onMount, async t => {
  const user = await OrdinaryUser.make(t)
  await user.sh('thinfs init pool --data-size 64M --volume a=1M; mkdir mnt; thinfs mount pool mnt')
  await user.sh('echo outside > mnt/b')
  await t.rejects(
    user.root('ls home/mnt'),
    /Permission denied/,
    'not even root sees a mount of his',
  )
  await user.sh('thinfs umount pool')
  const within = await user.sh(`unshare -Urm bash --norc -euc '
    thinfs mount pool mnt
    stat -c "%u %g" mnt/a mnt/b; cat mnt/b
    thinfs create pool c --size 1M; echo within > mnt/d; thinfs snapshot pool b e
    # Somebody of whom the namespace knows nothing.
    chown 1 mnt/a 2> /dev/null || echo no
    thinfs umount pool
    thinfs create pool f --size 1M'`)
  t.equal(within.replace(/^[c-f]: .*\n?/gm, '').trim(), '0 0\n0 0\noutside\nno')
  await user.sh('thinfs mount pool mnt')
  t.equal(await user.sh("stat -c '%u' mnt/* | uniq"), String(user.uid))
  t.equal(await user.sh('cat mnt/d mnt/e'), 'within\noutside')

  // From outside of a namespace where it is mounted it can be asked, and ended.
  await user.sh('thinfs umount pool')
  await user.sh(
    `unshare -Urm bash --norc -euc 'thinfs mount pool mnt; thinfs list pool' | grep '^d '`,
  )
  t.match(await user.sh('thinfs list pool'), /^d /m)
  t.match(await user.attempt('thinfs attach pool d'), {
    stderr: /not seen from this mount namespace/,
  })
  await user.sh('thinfs umount pool')
})

t.test('what belongs to others is not followed, in a namespace either', onMount, async t => {
  const user = await OrdinaryUser.make(t)
  await user.sh('thinfs init pool --data-size 16M')
  await user.root('chown 1 home/pool/pool.yaml')
  for (const within of ['', 'unshare -Urm']) {
    const refused = await user.attempt(`${within} thinfs list pool`)
    t.match(refused, { status: 1, stderr: /pool\.yaml: belongs to user .* \(NOT_TRUSTED\)\n$/ })
  }
  // Root's own is good enough outside. In a namespace root is a stranger like any other.
  await user.root('chown 0 home/pool/pool.yaml; chmod 644 home/pool/pool.yaml')
  await user.sh('thinfs list pool')
  const strange = await user.attempt('unshare -Urm thinfs list pool')
  t.match(strange, { status: 1, stderr: /pool\.yaml: belongs to user 65534.* \(NOT_TRUSTED\)\n$/ })
})
