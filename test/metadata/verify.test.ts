// Goal: under THINFS_VERIFY=all a change that leaves a tree, a space map or a block's ownership
// wrong stops the process. Method: something is broken behind the back of a change, in memory, in a
// process that verifies and in one that does not.
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import t from 'tap'

/** Each breaks a pool whose `metadata` has `device`, and `leaf`, the leaf of its mappings. */
const CASES = {
  'keys of a leaf are out of order': `
    leaf.view.setUint32(32 + 8, 90, true)
    metadata.mappings.insert(device, 20, metadata.allocateData(), metadata.time)`,
  'a node that is written in place has two owners': `
    metadata.createSnap(devId(1), device)
    leaf.writable = true
    metadata.mappings.insert(device, 20, metadata.allocateData(), metadata.time)`,
  'a block is freed twice': `
    const set = new BlockSet()
    set.add(7)
    set.add(7)`,
  'a block that was freed has an owner': `
    const block = metadata.allocateData()
    metadata.decData(block)
    metadata.allocateDataAt(block)
    await pool.commit()`,
}

const at = (path: string): string => new URL(`../../${path}`, import.meta.url).href
const PROGRAM = `
  import { BlockCache } from '${at('src/metadata/blocks/block-cache.ts')}'
  import { BlockSet } from '${at('src/metadata/space/block-set.ts')}'
  import { devId, formatted, openFiles } from '${at('test/support/memory-pool.ts')}'
  let leaf
  const { read } = BlockCache.prototype
  BlockCache.prototype.read = function (nr, kind) {
    const block = read.call(this, nr, kind)
    if (kind.name.startsWith('mapping')) leaf = block
    return block
  }
  const device = devId(0)
  for (const body of ${JSON.stringify(Object.values(CASES))}) {
    const { pool } = await openFiles(formatted({ blockSectors: 128, dataBlocks: 100 }))
    const { metadata } = pool
    pool.devices.createThin(device)
    for (let vblock = 0; vblock < 9; vblock++) metadata.mappings.insert(device, vblock, metadata.allocateData(), metadata.time)
    try {
      await eval('(async () => {' + body + '})()')
      console.log('done')
    } catch (err) {
      console.log(err.name)
    }
  }
  process.exit()`

async function outcomes(verify: string): Promise<string[]> {
  const args = ['--import=tsx', '--input-type=module', '--eval', PROGRAM]
  const env = { ...process.env, THINFS_VERIFY: verify }
  const { stdout } = await promisify(execFile)(process.execPath, args, { env })
  return stdout.trim().split('\n')
}

t.test('what is verified, and only then', async t => {
  const [verified, plain] = await Promise.all([outcomes('all'), outcomes('')])
  Object.keys(CASES).forEach((what, i) => {
    t.equal(verified[i], 'AssertionError', what)
    t.equal(plain[i], 'done', `${what}, and nobody looks`)
  })
})
