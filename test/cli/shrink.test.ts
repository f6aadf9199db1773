/**
 * `thinfs shrink` of pools that are not mounted. thin_check, thin_dump and the content that was
 * written judge.
 */
import { readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { loadConfig } from '../../src/config/index.js'
import { openPool, type Volumes } from '../../src/volumes/index.js'
import { done, refused, run } from './command-line.js'

const MIB = 2 ** 20

async function makePool(t: Test, yaml: string): Promise<string> {
  const pool = t.testdir({ 'pool.yaml': yaml })
  await done(t, 'init', join(pool, 'pool.yaml'))
  return pool
}

async function open(pool: string, use: (volumes: Volumes) => Promise<void>): Promise<void> {
  const { volumes, close } = await openPool(loadConfig(join(pool, 'pool.yaml')))
  try {
    await use(volumes)
  } finally {
    await close()
  }
}

async function write(volumes: Volumes, name: string, content: Buffer): Promise<void> {
  const { device } = volumes.find(name)!
  for (let at = 0; at < content.length; at += MIB) await device.write(at, MIB, content, at)
}

async function verify(pool: string, contents: Record<string, Buffer>): Promise<void> {
  await open(pool, async volumes => {
    for (const [name, content] of Object.entries(contents)) {
      const found = Buffer.alloc(content.length)
      volumes.find(name)!.device.read(0, content.length, found, 0)
      if (!found.equals(content)) throw new Error(`${name} is another`)
    }
  })
}

t.test('what is in use moves, and pool.yaml and the file are as large as it says', async t => {
  const yaml =
    'pool: a\ndata: { size: 96M } # large\nvolumes: { low: { size: 64M }, a: { size: 64M } }\n'
  const pool = await makePool(t, yaml)
  const content = Buffer.alloc(16 * MIB, 'content of a')
  const changed = Buffer.from(content).fill('changed', 3 * MIB, 4 * MIB)
  await open(pool, async volumes => {
    await volumes.makeMissing(loadConfig(join(pool, 'pool.yaml')).volumes)
    await write(volumes, 'low', Buffer.alloc(40 * MIB, 1))
    await write(volumes, 'a', content)
    await volumes.snapshot({ origin: 'a', name: 'before' })
    await volumes.find('a')!.device.write(3 * MIB, MIB, changed, 3 * MIB)
  })
  await done(t, 'remove', pool, 'low', '--yes')
  const size = () => statSync(join(pool, 'data')).size
  const yamlNow = () => readFileSync(join(pool, 'pool.yaml'), 'utf8')
  const plan = await done(t, 'shrink', pool, '--data', '-76M', '--dry-run', '--json')
  t.strictSame(JSON.parse(plan), {
    before: { data: 96 * MIB },
    after: { data: 20 * MIB },
    moved: 17 * MIB,
  })
  t.same([size(), yamlNow()], [96 * MIB, yaml])
  const inUse = /data: 272 data blocks are in use, 17825792 bytes; 256 blocks, 16777216 bytes, have/
  for (const more of [[], ['--dry-run']]) {
    await refused(t, 1, inUse, 'shrink', pool, '--data', '16M', ...more)
  }
  await refused(t, 2, /nothing would be left/, 'shrink', pool, '--data', '-96M')
  t.equal(await done(t, 'shrink', pool, '--data', '20M'), 'data: 20M, it was 96M; 17M moved\n')
  t.same([size(), yamlNow()], [20 * MIB, yaml.replace('96M', '20M')])
  t.match(await run('thin_check', join(pool, 'metadata')), { status: 0 }, 'thin_check')
  const { stdout } = await run('thin_dump', join(pool, 'metadata'))
  t.match(stdout, /nr_data_blocks="320"/)
  await verify(pool, { a: changed, before: content })

  // A death between the pool and its pool.yaml: to ask again is to end it.
  writeFileSync(join(pool, 'pool.yaml'), yaml)
  t.equal(await done(t, 'shrink', pool, '--data', '20M'), 'data: 20M, it was 96M; 0 moved\n')
  t.same([size(), yamlNow()], [20 * MIB, yaml.replace('96M', '20M')])
  await done(t, 'extend', pool, '--data', '96M')
  await verify(pool, { a: changed, before: content })
})

t.test('parts of an image do not become smaller', async t => {
  const pool = t.testdir({ 'pool.yaml': 'pool: a\ndata: { size: 64M }\nvolumes: {}\n' })
  await done(t, 'init', join(pool, 'pool.yaml'))
  const parts = 'data: { path: data, extents: [{ offset: 0, size: 64M }] }'
  writeFileSync(join(pool, 'pool.yaml'), `pool: a\n${parts}\nvolumes: {}\n`)
  await refused(t, 1, /\(NOT_SUPPORTED\)$/m, 'shrink', pool, '--data', '32M')
})
