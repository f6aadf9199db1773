// Goal: to mount(8), umount(8) and fstab(5) a pool is a filesystem like any other. Method: those
// programs themselves, in a mount namespace whose /sbin has the helpers and whose /etc/fstab is the
// test's.
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { needs } from '../support/mounted-pool.js'
import { OrdinaryUser } from '../support/ordinary-user.js'

const onMount = needs('/dev/fuse')

/** A user in whose namespace root's helpers are installed; `root` says how a script ended, too. */
async function installed(t: Test): Promise<OrdinaryUser> {
  const user = await OrdinaryUser.make(t)
  await user.root(`mkdir own/helpers own/etc; touch own/etc/fstab; cp own/passwd own/fuse.conf own/etc
    for name in mount.thinfs mount.fuse.thinfs umount.fuse.thinfs; do
      ln -s $(realpath own/thinfs) own/helpers/$name
    done
    sbin=$(realpath /sbin)
    mount -t overlay -o lowerdir=own/helpers:$sbin overlay $sbin
    mount -t overlay -o lowerdir=own/etc:/etc overlay /etc`)
  return user
}

/** Options of the mount on a folder, as the kernel has them. */
const optionsOf = (user: OrdinaryUser, folder: string): Promise<string> =>
  user.root(`findmnt --noheadings --output OPTIONS,FSTYPE ${join(user.base, folder)} || true`)

t.test('mount -t thinfs, umount', onMount, async t => {
  const user = await installed(t)
  await user.root('thinfs init tmp/pool --data-size 64M --volume web=16M; mkdir tmp/mnt')
  const usual =
    'rw,noatime,_netdev,nofail,auto,user,comment=x,x-systemd.requires=a.service,allow_other'
  await user.root(`mount -v -t thinfs tmp/pool tmp/mnt -o ${usual}`)
  t.match(await optionsOf(user, 'tmp/mnt'), /^rw,.*noatime.*allow_other.* fuse\.thinfs$/)
  const status = await user.root(`echo kept > tmp/mnt/web
    mount -o remount,ro tmp/mnt; ! echo more > tmp/mnt/web || exit 1
    mount -o remount,rw tmp/mnt; head -c 4 tmp/mnt/web
    exec 5<tmp/mnt/web; umount tmp/mnt 2>&1 || echo "status $?"`)
  t.match(status, /^kept.*thinfs: .*held by process \d+ \(sh\)/)
  t.match(status, /\(MOUNT_BUSY\)\nstatus 32$/)
  // Nobody has its files any more: umount(8) has waited for the last commit.
  const after = `umount tmp/mnt; grep -l ${user.base}/tmp/poo[l] /proc/[0-9]*/cmdline || true`
  t.equal(await user.root(after), '')

  const refused = `for options in frobnicate size=1G; do
      mount -t thinfs tmp/pool tmp/mnt -o $options 2>&1 || echo "status $?"
    done`
  t.match(await user.root(refused), /mount option frobnicate is not.*\nstatus 1\n.*\nstatus 1$/)
  t.match(await user.root('mount -t thinfs /none tmp/mnt 2>&1 || echo "$?"'), /NOT_A_POOL.*\n32$/)
  await user.root('mount -f -t thinfs tmp/pool tmp/mnt; mount.thinfs tmp/pool tmp/mnt -fv')
  t.equal(await optionsOf(user, 'tmp/mnt'), '', 'faked')
  await user.root('mount -s -t fuse.thinfs -r tmp/pool tmp/mnt -o frobnicate')
  t.match(await optionsOf(user, 'tmp/mnt'), /^ro,/, 'sloppy')
  await user.root('umount -l tmp/mnt')
  t.equal(await optionsOf(user, 'tmp/mnt'), '')
})

t.test('fstab(5): root mounts all, a user what is hers', onMount, async t => {
  const user = await installed(t)
  await user.root(`thinfs init tmp/pool --data-size 64M --volume web=16M; mkdir tmp/mnt
    cat > own/etc/fstab <<END
$PWD/tmp/pool/pool.yaml $PWD/tmp/mnt thinfs nofail,noatime,x-systemd.requires=x.service 0 0
$PWD/tmp/none/pool.yaml $PWD/tmp/mnt thinfs nofail,noauto 0 0
$PWD/home/pool/pool.yaml $PWD/home/mnt thinfs user,noauto 0 0
END
    mount -a; mount -a`)
  t.match(await optionsOf(user, 'tmp/mnt'), /noatime/)
  await user.root('umount tmp/mnt')
  await user.sh(`thinfs init pool --data-size 64M --volume web=16M; mkdir mnt
    mount ~/mnt; echo hers > mnt/web; fusermount3 -u mnt`)
  t.equal(await optionsOf(user, 'home/mnt'), '')
})
