// Goal: an export becomes a pool's data where that loses nothing, and where the server can do what
// a pool needs; else it is refused before anything is written. Method: nbdkit with an image, and
// its filters.
import {
  copyFileSync,
  cpSync,
  existsSync,
  readFileSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { MIB, type RemoteAddress } from '../../src/base/index.js'
import type { PoolConfig } from '../../src/config/index.js'
import { checkPool, initPool, openPool } from '../../src/volumes/index.js'
import { ServerProcess, shortFolder } from '../support/nbd-servers.js'
import { poolConfig } from '../support/pool-files.js'

const SIZE = 16 * MIB

interface Made {
  config: PoolConfig
  image: string
}

async function served(t: Test, begin: string, ...args: string[]): Promise<Made> {
  const folder = shortFolder(t)
  const image = join(folder, 'image')
  writeFileSync(image, begin)
  truncateSync(image, SIZE)
  const { address } = await ServerProcess.nbdkit(t, folder, ...args, 'file', image)
  return { config: over(poolConfig(t.testdir()), address), image }
}

const over = (config: PoolConfig, remote: RemoteAddress): PoolConfig => ({
  ...config,
  data: { path: remote.text, size: null, remote },
  cache: { size: 4 * MIB },
})

t.test('what is refused, and nothing is written', async t => {
  const cases: [begin: string, args: string[], code: string, message: RegExp][] = [
    ['somebody’s', [], 'BAD_ARGUMENT', /^nbd\+unix:.*: it is not empty: it has data; .*--force/],
    ['somebody’s', ['--filter=noextents'], 'BAD_ARGUMENT', /it is not empty/],
    ['', ['--readonly'], 'IO_ERROR', /the server gives it to be read only/],
  ]
  for (const [begin, args, code, message] of cases) {
    const { config, image } = await served(t, begin, ...args)
    const before = readFileSync(image)
    await t.rejects(initPool(config), { code, message })
    t.ok(readFileSync(image).equals(before), 'the export is as it was')
    t.notOk(existsSync(config.metadata.path), 'and nothing is left here')
  }
  const folder = shortFolder(t)
  const policy = ['--filter=blocksize-policy', 'memory', `${SIZE}`, 'blocksize-minimum=64k']
  const more = ['blocksize-preferred=64k', 'blocksize-maximum=1M', 'blocksize-error-policy=error']
  const { address } = await ServerProcess.nbdkit(t, folder, ...policy, ...more)
  const coarse = initPool(over(poolConfig(t.testdir()), address))
  await t.rejects(coarse, { code: 'NOT_SUPPORTED', message: /requests of 65536 bytes at least/ })
})

for (const [name, args] of [
  ['that tells of holes', []],
  ['that does not', ['--filter=noextents']],
  ['that cannot zero', ['--filter=nozero']],
] as const) {
  t.test(`a server ${name}: a pool that is opened and checked without a mount`, async t => {
    const { config } = await served(t, '', ...args)
    await initPool(config)
    const { volumes, close } = await openPool(config)
    await volumes.create({ name: 'v', size: 4 * MIB })
    const io = volumes.find('v')!.io
    const content = Buffer.alloc(MIB, 'content')
    await io.write(4096, content.length, content, 0)
    await io.discard(0, 128 * 1024)
    await volumes.commit()
    await close()
    const { problems } = await checkPool(config, { deep: true })
    t.same(problems, [])
    const again = await openPool(config)
    const found = Buffer.alloc(MIB)
    const device = again.volumes.find('v')!.io
    if (!device.read(4096, found.length, found, 0)) {
      await device.readLater(4096, found.length, found, 0)
    }
    content.fill(0, 0, 128 * 1024 - 4096)
    t.ok(found.equals(content), 'what was written and not discarded')
    await again.close()
  })
}

t.test('daemon and engine are killed, and the cache is gone with them', async t => {
  const { config, image } = await served(t, '')
  await initPool(config)
  const { volumes, close } = await openPool(config)
  await volumes.create({ name: 'v', size: 4 * MIB })
  const { io } = volumes.find('v')!
  const content = Buffer.alloc(MIB, 'content')
  await io.write(0, MIB, content, 0)
  await volumes.snapshot({ origin: 'v', name: 'before' })
  // It goes to another block, with the rest of the one that is shared; nobody flushes that.
  await io.write(4096, 4096, Buffer.alloc(4096, 'lost'), 0)
  await volumes.pool.settle()
  const left = shortFolder(t)
  copyFileSync(image, join(left, 'image'))
  cpSync(config.folder, join(left, 'pool'), { recursive: true })
  await close()

  const { address } = await ServerProcess.nbdkit(t, left, 'file', join(left, 'image'))
  const after = await openPool(over(poolConfig(join(left, 'pool')), address))
  const found = Buffer.alloc(MIB)
  await after.volumes.find('v')!.io.readLater(0, MIB, found, 0)
  await after.close()
  content.copy(found, 4096, 4096, 8192)
  t.ok(found.equals(content), 'what was flushed is there')
})
