// Goal: the tables are the kernel's structures. Method: the C compiler reads the kernel's own
// header and says what it makes of every size, offset, opcode and flag.
import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import * as abi from '../../src/fuse/abi.js'

/**
 * Minor version of the protocol that brought a name which the installed header may not know yet.
 */
const SINCE: Record<string, number> = {
  'fuse_in_header.total_extlen': 38,
  'fuse_in_header.padding': 38,
  'fuse_init_in.flags2': 36,
  'fuse_init_in.unused': 36,
  'fuse_init_out.flags2': 36,
  'fuse_init_out.unused': 36,
  fuse_init_in: 36,
  'fuse_create_in.open_flags': 33,
  FUSE_INIT_EXT: 36,
  FUSE_SYNCFS: 34,
  FUSE_TMPFILE: 37,
  FUSE_STATX: 39,
  FUSE_HAS_RESEND: 40,
  FUSE_NOTIFY_RESEND: 40,
  fuse_uring_req_header: 42,
  fuse_uring_ent_in_out: 42,
  fuse_uring_cmd_req: 42,
  FUSE_OVER_IO_URING: 42,
  FUSE_COPY_FILE_RANGE_64: 45,
  fuse_copy_file_range_out: 45,
}
const snake = (name: string): string => name.replace(/[A-Z]/g, c => `_${c.toLowerCase()}`)

t.test('structures, opcodes and flags are those of linux/fuse.h', t => {
  const expected: { name: string; expression: string; value: number }[] = []
  for (const table of Object.values(abi)) {
    if (typeof table !== 'object' || !('fields' in table)) continue
    const struct = `struct ${table.name}`
    expected.push({ name: table.name, expression: `sizeof(${struct})`, value: table.size })
    for (const [field, [offset]] of Object.entries(table.fields)) {
      const name = `${table.name}.${snake(field)}`
      expected.push({ name, expression: `offsetof(${struct}, ${snake(field)})`, value: offset })
    }
  }
  const constants: Record<string, number> = {
    ...abi.OPCODE,
    ...abi.INIT_FLAG,
    NOTIFY_INVAL_INODE: abi.NOTIFY_INVAL_INODE,
    NOTIFY_RESEND: abi.NOTIFY_RESEND,
    FSYNC_FDATASYNC: abi.FSYNC_FDATASYNC,
    ROOT_ID: abi.FUSE_ROOT_ID,
  }
  for (const [name, value] of Object.entries(constants)) {
    expected.push({ name: `FUSE_${name}`, expression: `FUSE_${name}`, value })
  }
  for (const [name, value] of Object.entries(abi.INIT_FLAG2)) {
    expected.push({ name: `FUSE_${name}`, expression: `(FUSE_${name} >> 32)`, value })
  }
  for (const [name, value] of Object.entries(abi.FATTR)) {
    expected.push({ name: `FATTR_${name}`, expression: `FATTR_${name}`, value })
  }
  expected.push({
    name: 'FOPEN_KEEP_CACHE',
    expression: 'FOPEN_KEEP_CACHE',
    value: abi.FOPEN_KEEP_CACHE,
  })

  const folder = mkdtempSync(join(tmpdir(), 'thinfs-abi-'))
  t.teardown(() => rmSync(folder, { recursive: true }))
  const lines = expected.map(({ name, expression }) => {
    const since = SINCE[name] ?? SINCE[name.split('.')[0]!] ?? 0
    const print = `printf("%s %lld\\n", "${name}", (long long)${expression});`
    return `#if FUSE_KERNEL_MINOR_VERSION >= ${since}\n${print}\n#endif`
  })
  const program = `#include <linux/fuse.h>\n#include <stddef.h>\n#include <stdio.h>\nint main() {\n${lines.join('\n')}\n}\n`
  writeFileSync(join(folder, 'abi.c'), program)
  execFileSync('cc', ['-o', join(folder, 'abi'), join(folder, 'abi.c')])
  const found = new Map(
    execFileSync(join(folder, 'abi'), { encoding: 'utf8' })
      .trim()
      .split('\n')
      .map(line => line.split(' ') as [string, string]),
  )
  for (const { name, value } of expected) {
    if (found.has(name)) t.equal(value, Number(found.get(name)), name)
  }
  t.ok(found.size > 150, `${found.size} of ${expected.length} compared`)
  t.end()
})

t.test('opcodes have names in messages', t => {
  t.equal(abi.opcodeName(16), 'WRITE')
  t.equal(abi.opcodeName(999), 'opcode 999')
  t.end()
})
