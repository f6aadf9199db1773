/**
 * Decides which snapshots are kept: by the rules of restic forget, which are nearly those of borg
 * prune.
 *
 * Each rule looks at all snapshots for itself, newest first, and keeps the newest one of each
 * period (an hour, a day, a week from Monday on, a month, a year; local time) until it has kept as
 * many as it may. Periods without a snapshot do not count. As long as a rule may keep more it keeps
 * the oldest one, too: it becomes the one of its period when those between are gone. Source:
 * restic.readthedocs.io, "Removing snapshots according to a policy".
 */

/** In the order in which people expect them. */
export const RULES = ['last', 'hourly', 'daily', 'weekly', 'monthly', 'yearly'] as const
export type Rule = (typeof RULES)[number]

/** How many snapshots a rule keeps at most. */
export type Rules = { [R in Rule]?: number }

/** The period that a time is in, as a number that no other period has. */
const PERIOD: Record<Rule, (time: Date, index: number) => number> = {
  last: (_, index) => index,
  hourly: time => dayOf(time) * 100 + time.getHours(),
  daily: dayOf,
  weekly: time => {
    const sinceMonday = (time.getDay() + 6) % 7
    return dayOf(new Date(time.getFullYear(), time.getMonth(), time.getDate() - sinceMonday))
  },
  monthly: time => time.getFullYear() * 100 + time.getMonth(),
  yearly: time => time.getFullYear(),
}

function dayOf(time: Date): number {
  return (time.getFullYear() * 100 + time.getMonth()) * 100 + time.getDate()
}

/**
 * The rules that keep each snapshot; none for one that is to go.
 * @param created seconds since 1970, descending
 */
export function rulesThatKeep(created: readonly number[], rules: Rules): Rule[][] {
  const kept: Rule[][] = created.map(() => [])
  for (const rule of RULES) {
    let left = rules[rule] ?? 0
    let last = Number.NaN
    for (let i = 0; i < created.length && left > 0; i++) {
      const period = PERIOD[rule](new Date(created[i]! * 1000), i)
      if (period === last && i < created.length - 1) continue
      last = period
      left--
      kept[i]!.push(rule)
    }
  }
  return kept
}
