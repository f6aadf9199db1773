/** The page of `thinfs serve`. */
import type { Happening } from '../../control/index.js'
import type { BlockMap, PoolStatus, VolumeInfo } from '../../volumes/index.js'
import type { Sample } from '../history.js'
import type { PoolRates } from '../rates.js'
import { Charts } from './charts.js'
import { BlockMapView } from './map.js'
import { countText, durationText, latencyText, sizeText, timeText, treeOf } from './words.js'

interface State {
  pool: string
  status: PoolStatus | null
  volumes: VolumeInfo[]
  rates: PoolRates | null
  history: Sample[]
  events: Happening[]
}

const NO_TOKEN = 'Open the address that thinfs serve prints: it has the token.'
const NO_ANSWER = 'thinfs serve does not answer.'

/** Milliseconds after which names and the map are looked at again. */
const STATE_PERIOD = 10_000
const MAP_PERIOD = 30_000
/** Events that are shown. */
const EVENTS_SHOWN = 200
/** Events that are a reason to look again at once. */
const SHOWN_ANEW = /^(mode|full_|extended_|engine_|unmounted)/

const byId = (id: string): HTMLElement => document.getElementById(id)!
const say = (id: string, text: string): void => {
  // Unchanged text is no news for a screen reader.
  if (byId(id).textContent !== text) byId(id).textContent = text
}

const charts = new Charts()
const map = new BlockMapView()
let volumes: VolumeInfo[] = []
let blockMap: BlockMap | null = null
let rates: PoolRates | null = null
let status: PoolStatus | null = null
let lastEvent = 0

/** Of the address: behind the #, which the browser sends to nobody. */
const token = new URLSearchParams(location.hash.slice(1)).get('token')

async function get<T>(path: string): Promise<T> {
  const response = await fetch(path, {
    headers: token === null ? {} : { Authorization: `Bearer ${token}` },
  })
  if (response.status === 401) throw new Error(NO_TOKEN)
  if (!response.ok) throw new Error(`${path}: ${response.status}`)
  return (await response.json()) as T
}

function notice(text: string | null): void {
  byId('notice').hidden = text === null
  say('notice', text ?? '')
}

async function loadState(): Promise<void> {
  const state = await get<State>('api/state')
  status = state.status
  say('name', status?.name ?? 'thinfs')
  document.title = status === null ? 'thinfs' : `${status.name} – thinfs`
  say('where', status?.mount ? `${state.pool} at ${status.mount.mountPoint}` : state.pool)
  volumes = state.volumes
  notice(
    status === null
      ? 'The pool is not mounted. This page goes on when it is.'
      : status.reason !== null
        ? `Mode ${status.mode}: ${status.reason}`
        : (status.warnings[0] ?? null),
  )
  charts.add(state.history)
  for (const event of state.events) happened(event)
  showRates(state.rates)
}

async function loadMap(): Promise<void> {
  blockMap = await get<BlockMap | null>('api/map')
  map.show(blockMap)
  showVolumes()
}

function showRates(now: PoolRates | null): void {
  rates = now
  const mode = now?.mode ?? status?.mode ?? 'not mounted'
  const badge = byId('mode')
  say('mode', mode)
  badge.className = `badge ${mode === 'write' ? 'good' : 'bad'}`
  if (now === null) return
  const { used, size, metadataUsed, metadataSize, io, usedPerSecond } = now
  showFill('data', used, size)
  showFill('metadata', metadataUsed, metadataSize)
  const full = now.secondsUntilFull
  say(
    'forecast',
    full !== null
      ? `fills by ${sizeText(usedPerSecond)}/s: full in ${durationText(full)} at this rate`
      : usedPerSecond < 0
        ? `gives back ${sizeText(-usedPerSecond)}/s`
        : 'does not fill now',
  )
  say('t-reads', `${countText(io.read.perSecond)}/s`)
  say('t-read-bytes', `${sizeText(io.read.bytesPerSecond)}/s`)
  say('t-writes', `${countText(io.write.perSecond)}/s`)
  say('t-write-bytes', `${sizeText(io.write.bytesPerSecond)}/s`)
  say('t-discards', `${countText(io.discard.perSecond)}/s`)
  say('t-discard-bytes', `${sizeText(io.discard.bytesPerSecond)}/s`)
  say('t-flushes', `${countText(io.flush.perSecond)}/s`)
  say('t-flush-ms', `mean ${latencyText(io.flush.meanMs)}`)
  say('t-p99', latencyText(io.all.p99Ms))
  say('t-mean', `p99; mean ${latencyText(io.all.meanMs)}`)
  say('t-waiting', String(now.writesWaiting))
  say('t-commits', `${countText(now.commitsPerSecond)} commits/s`)
  showVolumes()
}

function showFill(id: 'data' | 'metadata', used: number, size: number): void {
  const meter = byId(id) as HTMLMeterElement
  const share = size === 0 ? 0 : used / size
  meter.low = 0.7
  meter.high = 0.9
  meter.optimum = 0
  meter.value = share
  say(`${id}-text`, `${sizeText(used)} of ${sizeText(size)} (${(share * 100).toFixed(1)}%)`)
}

function showVolumes(): void {
  const byName = new Map(rates?.volumes.map(volume => [volume.name, volume]))
  const counted = new Map(blockMap?.volumes.map(volume => [volume.name, volume]))
  const rows = treeOf(volumes).map(({ volume, prefix }) => {
    const now = byName.get(volume.name)
    const mapped = now?.mapped ?? volume.mapped
    const then = counted.get(volume.name)
    const row = document.createElement('tr')
    const head = document.createElement('th')
    head.scope = 'row'
    const twig = document.createElement('span')
    twig.className = 'twig'
    twig.setAttribute('aria-hidden', 'true')
    twig.textContent = prefix
    head.append(twig, volume.name)
    if (volume.origin !== null) head.title = `snapshot of ${volume.origin}`
    const io = now?.io
    const cells = [
      sizeText(volume.size),
      sizeText(mapped),
      then === undefined ? '–' : sizeText(then.exclusive),
      then === undefined ? '–' : sizeText(then.mapped - then.exclusive),
      io ? countText(io.read.perSecond) : '–',
      io ? countText(io.write.perSecond) : '–',
      io ? ((io.read.bytesPerSecond + io.write.bytesPerSecond) / 2 ** 20).toFixed(1) : '–',
      io ? latencyText(io.all.p99Ms) : '–',
    ]
    row.append(head)
    for (const text of cells) {
      const cell = document.createElement('td')
      cell.textContent = text
      row.append(cell)
    }
    return row
  })
  byId('volumes').replaceChildren(...rows)
}

function happened(event: Happening): void {
  if (event.id <= lastEvent) return
  lastEvent = event.id
  const item = document.createElement('li')
  const time = document.createElement('time')
  const at = new Date(event.time * 1000)
  time.dateTime = at.toISOString()
  time.textContent = timeText(event.time)
  const name = document.createElement('span')
  name.textContent = event.event === 'mode' ? `mode ${event.mode ?? ''}` : event.event
  const detail = document.createElement('span')
  detail.className = 'detail'
  detail.textContent = event.detail
  item.append(time, name, detail)
  byId('events').prepend(item)
  while (byId('events').children.length > EVENTS_SHOWN) byId('events').lastElementChild!.remove()
  byId('no-events').hidden = true
}

/** Looks now, and again and again; a failure is shown until it is over. */
function regularly(period: number, look: () => Promise<void>): () => void {
  let isLooking = false
  const again = (): void => {
    if (isLooking || document.hidden) return
    isLooking = true
    look()
      .catch(err => notice((err as Error).message === NO_TOKEN ? NO_TOKEN : NO_ANSWER))
      .finally(() => {
        isLooking = false
      })
  }
  again()
  setInterval(again, period)
  document.addEventListener('visibilitychange', again)
  return again
}

const reload = regularly(STATE_PERIOD, loadState)
regularly(MAP_PERIOD, loadMap)

const live = new EventSource(
  token === null ? 'api/live' : `api/live?token=${encodeURIComponent(token)}`,
)
live.addEventListener('rates', ({ data }: MessageEvent<string>) => {
  const now = JSON.parse(data) as PoolRates | null
  const isOther = (now === null) !== (rates === null)
  showRates(now)
  if (isOther) reload()
  if (now === null) return
  charts.add([
    {
      ...{ time: now.time, used: now.used, size: now.size, p99Ms: now.io.all.p99Ms },
      readBytesPerSecond: now.io.read.bytesPerSecond,
      writtenBytesPerSecond: now.io.write.bytesPerSecond,
    },
  ])
})
live.addEventListener('happened', ({ data }: MessageEvent<string>) => {
  const event = JSON.parse(data) as Happening
  happened(event)
  if (SHOWN_ANEW.test(event.event)) reload()
})
// Why, the next look tells.
live.addEventListener('error', reload)
live.addEventListener('open', reload)
