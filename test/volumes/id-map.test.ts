import t from 'tap'
import { IdMap } from '../../src/volumes/index.js'

/** What is in /proc/PID/uid_map, and numbers inside and outside that are the same user. */
const CASES = [
  {
    text: '         0          0 4294967295\n',
    same: [
      [0, 0],
      [1000, 1000],
      [4294967294, 4294967294],
    ],
  },
  {
    text: '0 1000 1\n',
    same: [[0, 1000]],
    unknown: { inside: [1, 1000], outside: [0, 999, 1001] },
  },
  {
    text: '0 1000 1\n1 100000 65536\n',
    same: [
      [0, 1000],
      [1, 100000],
      [65536, 165535],
    ],
    unknown: { inside: [65537], outside: [0, 1, 99999, 165536] },
  },
]

for (const { text, same, unknown = { inside: [], outside: [] } } of CASES) {
  t.test(`uid_map ${text.trim()}`, async t => {
    const map = new IdMap(text)
    for (const [inside, outside] of same) {
      t.same([map.outside(inside!), map.inside(outside!)], [outside, inside])
    }
    for (const id of unknown.inside) t.equal(map.outside(id), 65534)
    for (const id of unknown.outside) t.equal(map.inside(id), 65534)
  })
}
