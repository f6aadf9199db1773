// The documents that a test can check: what they say is what the source says.
import { readFileSync } from 'node:fs'
import t from 'tap'
import { ERRORS } from '../../src/base/index.js'
import * as format from '../../src/metadata/format.js'
import { CHANGE } from '../../src/pool/journal-changes.js'
import { FRAME, IDENTITY } from '../../src/pool/journal-frames.js'
import { STATE_JOURNAL, STATE_SLOT } from '../../src/remote/index.js'
import { RECORD_ENTRY } from '../../src/replay/index.js'
import { RECORD_HEAD } from '../../src/streams/format.js'
import { SIGN, TENANT } from '../../src/tenancy/record.js'
import { layoutTable } from '../support/layout-table.js'

const read = (path: string): string =>
  readFileSync(new URL(`../../${path}`, import.meta.url), 'utf8')

t.test('docs/FORMAT.md has every layout as it is', async t => {
  const text = read('docs/FORMAT.md')
  const { SUPERBLOCK, SPACE_MAP_ROOT, NODE, DEVICE_DETAILS, BITMAP, INDEX_ENTRY, INDEX_BLOCK } =
    format
  for (const layout of [
    SUPERBLOCK,
    SPACE_MAP_ROOT,
    NODE,
    DEVICE_DETAILS,
    BITMAP,
    INDEX_ENTRY,
    INDEX_BLOCK,
    FRAME,
    CHANGE,
    IDENTITY,
    RECORD_ENTRY,
    RECORD_HEAD,
    STATE_SLOT,
    STATE_JOURNAL,
    TENANT,
    SIGN,
  ]) {
    const table = layoutTable(layout)
    t.ok(text.includes(table), layout.name, { expected: table })
  }
})

t.test('docs/OPERATIONS.md says of every error what to do', async t => {
  const text = read('docs/OPERATIONS.md')
  for (const [code, { errno }] of Object.entries(ERRORS)) {
    t.match(text, new RegExp(`^### ${code} \\(${errno}\\)$`, 'm'), code)
  }
})
