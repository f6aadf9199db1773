// Goal: whoever types what README.md and docs/ say gets through. Method: the sh blocks of a page,
// in their order, are one script, which begins with nothing: root's has empty /srv and /mnt, an
// ordinary user's an empty home. A block that cannot be run has a comment above it with the reason.
import { readdirSync, readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import t, { type Test } from 'tap'
import { needs } from '../support/mounted-pool.js'
import { OrdinaryUser } from '../support/ordinary-user.js'

const ROOT = resolve(import.meta.dirname, '../..')

/**
 * What root types on these pages changes nothing of the machine but below /srv and /mnt. On others
 * nothing is run but what an ordinary user does.
 */
const PAGES_OF_ROOT = [
  'README.md',
  ...['TOUR', 'CONTAINERS', 'BACKUP', 'ROLLBACK', 'MIGRATION', 'HOSTS'].map(
    name => `docs/${name}.md`,
  ),
]

interface Page {
  file: string
  /** What root, and what an ordinary user types; empty for nothing. */
  root: string
  user: string
  /** Reasons why blocks are not run. */
  notRun: string[]
}

const BLOCK = /(?:^<!-- (.*?)(?:: (.*?))? -->\n)?^```sh\n(.*?)^```$/gms

function read(file: string): Page {
  const page: Page = { file, root: '', user: '', notRun: [] }
  for (const [, mark, detail, block] of readFileSync(join(ROOT, file), 'utf8').matchAll(BLOCK)) {
    if (mark === undefined && PAGES_OF_ROOT.includes(file)) page.root += block
    else if (mark === undefined) page.notRun.push('the page is not one of those that root tries')
    else if (mark === 'as' && detail === 'an ordinary user') page.user += block
    else if (mark.startsWith('not run') && detail) page.notRun.push(detail)
    else throw new Error(`${file}: ${mark}: ${detail} is no mark of a block`)
  }
  return page
}

const pages = ['README.md', ...readdirSync(join(ROOT, 'docs')).map(name => `docs/${name}`)]
  .filter(file => file.endsWith('.md'))
  .map(read)

/** For where a page broke off: its loop devices would stay. */
const CLEAN_UP = `
mounts() { grep -E "$1" /proc/self/mounts | cut -d' ' -f2 | grep ^/mnt/; }
for at in $(mounts ^/dev/loop); do umount $at; done
for at in $(mounts ' fuse[.]thinfs '); do
  losetup --noheadings --output NAME,BACK-MAJ:MIN |
    awk -v of=$(mountpoint -d $at) '$2 == of { print $1 }' | xargs -r losetup -d
  thinfs umount --force $at
done`

/** Runs a page by bash, from a file: its commands may read standard input. */
const asFile = (script: string): string =>
  `cat > page.sh <<'END OF PAGE'\n${script}END OF PAGE\nbash -euo pipefail page.sh < /dev/null 2>&1`

async function leavesNothing(t: Test, user: OrdinaryUser): Promise<void> {
  const within = `($3 == "fuse.thinfs" || $1 ~ "^/dev/loop") && $2 ~ "^(/mnt|${user.home})/"`
  t.equal(await user.root(`awk '${within} { print $2 }' /proc/self/mounts`), '', 'no mount')
}

t.test('as they stand, from nothing', needs('/dev/fuse', '/dev/loop-control'), async t => {
  const user = await OrdinaryUser.make(t)
  t.teardown(() => user.root(CLEAN_UP))
  for (const page of pages.filter(({ root }) => root !== '')) {
    await user.root('for at in /srv /mnt; do mount -t tmpfs -o mode=755 thinfs-test $at; done')
    t.pass(`${page.file}: ${await user.root(asFile(page.root))}`)
    await leavesNothing(t, user)
    await user.root('umount /srv /mnt')
  }
  for (const page of pages.filter(({ user }) => user !== '')) {
    t.pass(`${page.file}: ${await user.sh(asFile(page.user))}`)
    await leavesNothing(t, user)
    await user.sh('rm -r ~/*; mkdir tmp')
  }
})

t.test('what is not run', async t => {
  for (const { file, notRun } of pages) for (const why of notRun) t.comment(`${file}: ${why}`)
  const root = pages.filter(({ root }) => root !== '').map(({ file }) => file)
  t.same(root.sort(), PAGES_OF_ROOT.toSorted())
  const user = pages.filter(({ user }) => user !== '').map(({ file }) => file)
  t.same(user.sort(), ['README.md', 'docs/ROOTLESS.md'])
})
