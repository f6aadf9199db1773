import t from 'tap'
import { decodeDevice, encodeDevice } from '../../src/dm/abi.js'
import { paramsOf, parseTarget, splitWords } from '../../src/dm/targets.js'

const lookUp = async (word: string) => {
  const [major, minor] = word.split(':').map(Number) as [number, number]
  return { major, minor }
}

t.test('a line is printed as the kernel prints it, whatever order and blanks it had', async t => {
  const pool = '7:1 7:0 128 1024'
  const cases: [type: string, params: string, printed: string][] = [
    ['linear', '  7:0   2048 ', '7:0 2048'],
    ['striped', '2 16 7:0 0 7:1 32', '2 16 7:0 0 7:1 32'],
    ['zero', '', ''],
    ['error', 'whatever', ''],
    ['thin', '7:1000 5', '7:1000 5'],
    ['thin', '7:1000 010 7:3', '7:1000 10 7:3'],
    ['thin-pool', pool, `${pool} 0 `],
    ['thin-pool', `${pool} 0`, `${pool} 0 `],
    ['thin-pool', `${pool} 1 SKIP_block_zeroing`, `${pool} 1 skip_block_zeroing `],
    [
      'thin-pool',
      `${pool} 4 error_if_no_space read_only no_discard_passdown skip_block_zeroing`,
      `${pool} 4 skip_block_zeroing no_discard_passdown read_only error_if_no_space `,
    ],
    ['thin-pool', `${pool} 2 read_only read_only`, `${pool} 1 read_only `],
  ]
  for (const [type, params, printed] of cases) {
    const target = await parseTarget({ start: 0, length: 64, type, params }, lookUp)
    t.equal(paramsOf(target), printed, `${type} ${params}`)
    const again = await parseTarget({ start: 0, length: 64, type, params: printed }, lookUp)
    t.same(again, target, 'and means the same')
  }
})

t.test('words: blanks separate, a backslash keeps what follows', async t => {
  t.same(splitWords(' a\\ b \\\\ c\t d'), ['a b', '\\', 'c', 'd'])
  t.same(splitWords('   '), [])
})

t.test('device numbers', async t => {
  for (const minor of [0, 255, 256, 1000, 2 ** 20 - 1]) {
    t.same(decodeDevice(encodeDevice({ major: 7, minor })), { major: 7, minor })
  }
  t.equal(encodeDevice({ major: 7, minor: 1000 }), 0x3007e8, 'as gnu_dev_makedev has it')
})
