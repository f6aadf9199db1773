// Goal: the tables are the kernel's structures. Method: the C compiler reads the kernel's own
// header.
import { execFileSync } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import * as abi from '../../src/ring/abi.js'

/** Fields whose name in the header is not ours in another spelling. */
const NAMES: Record<string, string> = { opFlags: 'rw_flags', command: 'cmd' }
const snake = (name: string): string => name.replace(/[A-Z]/g, c => `_${c.toLowerCase()}`)

t.test('structures and numbers are those of linux/io_uring.h', async t => {
  const expected = new Map<string, number>()
  for (const { name, size, fields } of [abi.SQE, abi.CQE]) {
    expected.set(`sizeof(struct ${name})`, size)
    for (const [field, [offset]] of Object.entries(fields)) {
      expected.set(`offsetof(struct ${name}, ${NAMES[field] ?? snake(field)})`, offset)
    }
  }
  for (const [name, value] of Object.entries(abi.OPERATION)) {
    expected.set(`IORING_OP_${name}`, value)
  }
  expected.set('IORING_ASYNC_CANCEL_ALL', abi.CANCEL_ALL)
  expected.set('IORING_ASYNC_CANCEL_ANY', abi.CANCEL_ANY)

  const folder = t.testdir()
  const checks = [...expected].map(
    ([expression, value]) => `_Static_assert(${expression} == ${value}, "${expression}");`,
  )
  const source = ['#include <linux/io_uring.h>', '#include <stddef.h>', ...checks].join('\n')
  writeFileSync(join(folder, 'abi.c'), `${source}\n`)
  const args = ['-c', '-o', join(folder, 'abi.o'), join(folder, 'abi.c')]
  t.doesNotThrow(() => execFileSync('cc', args, { stdio: 'pipe' }))
  t.ok(expected.size > 20)
})
