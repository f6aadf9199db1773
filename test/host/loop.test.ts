// Goal: nobody waits for losetup(8) while that waits for a file's server. Method: a losetup that the kernel
// has waiting for a request that is not answered, so that no signal ends it.
import { chmodSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { DEV } from '../../src/fuse/index.js'
import { listLoops } from '../../src/host/index.js'
import { WAITING_XATTR } from '../support/folder-file-system.js'
import { FolderMount } from '../support/folder-mount.js'
import { needs } from '../support/mounted-pool.js'

t.test('a losetup that cannot be killed is not waited for', needs('/dev/fuse'), async t => {
  const mount = await FolderMount.make(t, DEV)
  writeFileSync(join(mount.folder, 'a'), '')
  const folder = t.testdir({
    losetup: `#!/bin/sh\necho $$ > ${mount.folder}/pid\nexec getfattr -n ${WAITING_XATTR} ${mount.path}/a\n`,
  })
  chmodSync(join(folder, 'losetup'), 0o755)
  const { PATH } = process.env
  process.env.PATH = `${folder}:${PATH}`
  t.teardown(() => {
    process.env.PATH = PATH
  })
  t.type(await listLoops(), Array)
  const pid = readFileSync(join(mount.folder, 'pid'), 'latin1').trim()
  t.match(readFileSync(`/proc/${pid}/status`, 'latin1'), /^State:\t[DS]/m, 'it waits still')
})
