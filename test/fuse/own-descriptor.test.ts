// Goal: where the kernel sends no request again, what an engine has read and not answered fails
// when it dies, and nobody waits for it; all others go on. Method: a folder served as on such a
// kernel, a request that is never answered, and a server that is killed.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import t from 'tap'
import { DEV } from '../../src/fuse/index.js'
import { FULL } from '../support/folder-file-system.js'
import { FolderMount } from '../support/folder-mount.js'
import { needs, sh, until } from '../support/mounted-pool.js'

t.test('a request that a dead engine had read', needs('/dev/fuse'), async t => {
  const mount = await FolderMount.make(t, DEV, { isOld: true })
  const { path, folder } = mount
  await sh(folder, `truncate -s 1M ${FULL}`)
  await sh(path, 'seq 100000 > numbers; cp numbers copy; cmp numbers copy; mv copy moved; rm moved')
  t.equal(await sh('/', `cmp ${path}/numbers ${folder}/numbers`), '')
  for (let i = 0; i < 2; i++) {
    const file = join(path, FULL)
    const dd = spawn('dd', ['if=/dev/zero', `of=${file}`, 'bs=4k', 'count=1', 'conv=notrunc'], {
      stdio: ['ignore', 'ignore', 'pipe'],
    })
    const said: Buffer[] = []
    dd.stderr.on('data', (part: Buffer) => said.push(part))
    const ended = once(dd, 'exit')
    await until(async () => (await mount.ask({ do: 'calls' })).some(([name]) => name === 'wait'))
    await mount.kill()
    t.same(await ended, [1, null])
    t.match(Buffer.concat(said).toString(), /Software caused connection abort/)
    const waits = sh(path, 'wc -l < numbers')
    await mount.serve()
    t.match(await waits, /^100000/, 'what no engine had read is answered by the next one')
  }
  t.same(await mount.unmount(), { said: 'unmounted', status: 0 })
})
