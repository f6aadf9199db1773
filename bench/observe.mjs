/**
 * Loaded into thinfs's engine before its program (node --import): at every SIGUSR2 writes what it
 * has allocated since the last one, by site, and how long garbage collections stopped it.
 */
import { renameSync, writeFileSync } from 'node:fs'
import { Session } from 'node:inspector'
import { basename } from 'node:path'
import { PerformanceObserver } from 'node:perf_hooks'

/** Bytes between two samples, on average: each stands for what was allocated since the last. */
const SAMPLING_INTERVAL = 4096
const SETTLE_MS = 100

// The daemon has the same environment.
if (process.argv[1]?.endsWith('/engine/main.js')) observe(process.env.THINFS_BENCH_OBSERVED)

function observe(file) {
  let pausesMs = []
  let ownSince = Infinity
  new PerformanceObserver(list => {
    for (const { startTime, duration } of list.getEntries()) {
      if (startTime < ownSince) pausesMs.push(duration)
    }
  }).observe({ entryTypes: ['gc'] })
  const session = new Session()
  session.connect()
  const report = () => {
    // Collects all garbage first, which is none of the engine's doing.
    ownSince = performance.now()
    session.post('HeapProfiler.stopSampling', (err, result) => {
      if (err) throw err
      writeFileSync(
        `${file}.new`,
        JSON.stringify({ pausesMs, allocated: sitesOf(result.profile.head) }),
      )
    })
    setTimeout(() => {
      pausesMs = []
      ownSince = Infinity
      start(session)
      renameSync(`${file}.new`, file)
    }, SETTLE_MS)
  }
  // What is told of collections comes some turns of the loop later.
  process.on('SIGUSR2', () => setTimeout(report, SETTLE_MS))
  start(session)
}

function start(session) {
  session.post('HeapProfiler.startSampling', {
    samplingInterval: SAMPLING_INTERVAL,
    includeObjectsCollectedByMajorGC: true,
    includeObjectsCollectedByMinorGC: true,
  })
}

/** Bytes by `function file:line`, most first. */
function sitesOf(head) {
  const sites = new Map()
  const nodes = [head]
  for (const { callFrame, selfSize, children } of nodes) {
    nodes.push(...children)
    if (selfSize === 0) continue
    const { functionName, url, lineNumber } = callFrame
    const place = url === '' ? '' : ` ${basename(url)}:${lineNumber + 1}`
    const site = `${functionName || '(anonymous)'}${place}`
    sites.set(site, (sites.get(site) ?? 0) + selfSize)
  }
  const entries = [...sites].map(([site, bytes]) => ({ site, bytes }))
  return entries.toSorted((a, b) => b.bytes - a.bytes)
}
