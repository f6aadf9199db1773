/**
 * Goal: the rules keep what those of restic and borg keep. Method: random snapshots and rules,
 * judged by Python with its own calendar, from the rules as restic's manual has them: for the last
 * N periods that have a snapshot the newest of each; the oldest of all, where there are fewer
 * periods.
 */
import { execFileSync } from 'node:child_process'
import t from 'tap'
import { RULES, type Rules, rulesThatKeep } from '../../src/volumes/retention.js'
import { Random } from '../support/random.js'

const MODEL = `
import json, sys, time
PERIODS = {'hourly': '%Y-%m-%d %H', 'daily': '%Y-%m-%d', 'weekly': '%G-%V', 'monthly': '%Y-%m', 'yearly': '%Y'}
def kept(created, rules):
    names = [set() for _ in created]
    for rule, n in rules.items():
        newest = {}
        for i, at in enumerate(created):
            period = i if rule == 'last' else time.strftime(PERIODS[rule], time.localtime(at))
            newest.setdefault(period, i)
        chosen = sorted(newest.values())[:n]
        if len(newest) < n and created: chosen.append(len(created) - 1)
        for i in chosen: names[i].add(rule)
    return [sorted(found) for found in names]
print(json.dumps([kept(*case) for case in json.load(sys.stdin)]))`

/** Seconds from one snapshot to the next, from minutes to months. */
const STEPS = [600, 3600, 7200, 86_400, 3 * 86_400, 30 * 86_400]

function randomCase(random: Random): [created: number[], rules: Rules] {
  // The end of 2026: its last week is that of a year of 53, and both changes of the clock are near.
  let at = 1_798_761_600 + random.below(86_400 * 7)
  const created: number[] = []
  for (let i = random.below(60); i > 0; i--) {
    created.push(at)
    at -= random.below(random.of(STEPS))
  }
  const rules: Rules = {}
  for (const rule of RULES) if (random.chance(0.4)) rules[rule] = random.between(1, 12)
  return [created, rules]
}

for (const zone of ['UTC', 'Europe/Berlin', 'America/St_Johns', 'Pacific/Apia']) {
  t.test(`as Python has it in ${zone}`, async t => {
    const before = process.env.TZ
    t.teardown(() => {
      if (before === undefined) delete process.env.TZ
      else process.env.TZ = before
    })
    process.env.TZ = zone
    const random = new Random(zone.length)
    const cases = Array.from({ length: 300 }, () => randomCase(random))
    const wanted = JSON.parse(
      execFileSync('python3', ['-c', MODEL], {
        input: JSON.stringify(cases),
        encoding: 'utf8',
        env: { ...process.env, TZ: zone },
      }),
    )
    const found = cases.map(([created, rules]) =>
      rulesThatKeep(created, rules).map(names => [...names].sort()),
    )
    t.strictSame(found, wanted)
    t.ok(found.flat().some(names => names.length === 0) && found.flat().some(n => n.length > 2))
  })
}
