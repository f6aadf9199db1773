// Goal: what list and pools show is chosen as lvs, lsblk and a shell's patterns have it.
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { needs } from '../support/mounted-pool.js'
import { done, refused, thinfs } from './command-line.js'

const folder = mkdtempSync(join(tmpdir(), 'thinfs-cli-'))
t.teardown(() => rmSync(folder, { recursive: true }))
const pool = join(folder, 'pool')
const list = async (...args: string[]): Promise<string[]> =>
  (await done(t, 'list', pool, ...args)).trimEnd().split('\n')

t.before(async () => {
  await done(t, 'init', pool, '--data-size', '64M', '--volume', 'web=3M', '--volume', 'db=40960s')
  await done(t, 'snapshot', pool, 'web', 'web@1')
  await done(t, 'snapshot', pool, 'web@1', 'web@2')
  await done(t, 'snapshot', pool, 'web', 'web+3')
})

t.test('columns, order, units, names', async t => {
  t.same(await list('-o', 'name,size', '--sort', '-size,name'), [
    'NAME   SIZE',
    'db      20M',
    'web      3M',
    'web+3    3M',
    'web@1    3M',
    'web@2    3M',
  ])
  t.same(await list('-o', 'size,name', '--units', 's', '--noheadings', 'd?', 'web'), [
    '40960  db',
    ' 6144  web',
  ])
  t.match((await list('-o', '+exclusive', 'db'))[1], /^db +\d+ +20M +0 +0\.00 +0 /)
  t.same(
    JSON.parse((await list('web@*', '--json')).join('')).map(({ name }: { name: string }) => name),
    ['web@1', 'web@2'],
  )
  t.same(await list('-o', 'name', '--noheadings', 'none*'), [''])
  await refused(t, 1, /none: no volume has the name \(VOLUME_MISSING\)/, 'list', pool, 'none')
  await refused(t, 2, /-o lv_name: the columns are name, id/, 'list', pool, '-o', 'lv_name')
  await refused(t, 2, /--sort x: the columns are/, 'list', pool, '--sort', 'x')
  await refused(t, 2, /--units q: h for people, or one of b, s/, 'list', pool, '--units', 'q')
})

t.test('snapshots as a tree', async t => {
  t.same(await list('--tree', '--noheadings', '-o', 'name'), [
    'db',
    'web',
    '├─web+3',
    '└─web@1',
    '  └─web@2',
  ])
})

t.test('pools that are mounted', needs('/dev/fuse'), async t => {
  const mnt = join(folder, 'mnt')
  mkdirSync(mnt)
  await done(t, 'mount', pool, mnt)
  t.teardown(() => thinfs('umount', mnt))
  // Those of others are there as well.
  const line = (await done(t, 'pools')).split('\n').find(line => line.includes(mnt))
  t.match(
    line,
    new RegExp(`^pool +${mnt} +64M +0\\.00 +\\d+\\.\\d\\d +5 +write +${pool}/pool.yaml$`),
  )
  const all = JSON.parse(await done(t, 'pools', '--json'))
  t.match(
    all.find(({ mountPoint }: { mountPoint: string }) => mountPoint === mnt),
    {
      ...{ name: 'pool', mode: 'write', volumes: 5, data: { used: 0, size: 64 * 2 ** 20 } },
    },
  )
})
