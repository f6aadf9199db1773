/** The charts over time. */
import uPlot from 'uplot'
import type { Sample } from '../history.js'
import { latencyText, sizeText, timeText } from './words.js'

/** Pixels: of the first where two columns stand side by side, and of the others. */
const TALL = 330
const HEIGHT = 170
const WIDE = '(min-width: 900px)'
/** Samples that a page keeps, from the server's past and its own. */
const KEPT = 4000

interface Line {
  label: string
  /** Name of a CSS variable. */
  colour: string
  fill?: boolean
  of(sample: Sample): number
}

interface Spec {
  id: string
  text(value: number): string
  lines: Line[]
  /** Units of 1024. */
  inBytes: boolean
}

const SPECS: Spec[] = [
  {
    id: 'chart-used',
    text: sizeText,
    inBytes: true,
    lines: [{ label: 'in use', colour: '--read', fill: true, of: ({ used }) => used }],
  },
  {
    id: 'chart-bytes',
    text: value => `${sizeText(value)}/s`,
    inBytes: true,
    lines: [
      { label: 'read', colour: '--read', of: sample => sample.readBytesPerSecond },
      { label: 'written', colour: '--write', of: sample => sample.writtenBytesPerSecond },
    ],
  },
  {
    id: 'chart-latency',
    text: value => (value === 0 ? '0' : latencyText(value)),
    inBytes: false,
    lines: [{ label: 'p99', colour: '--read', of: ({ p99Ms }) => p99Ms }],
  },
]

const colour = (name: string): string =>
  getComputedStyle(document.documentElement).getPropertyValue(name).trim()

const heightOf = ({ id }: Spec): number =>
  id === 'chart-used' && matchMedia(WIDE).matches ? TALL : HEIGHT

/** Ticks at round numbers of bytes. */
const BYTE_STEPS = Array.from({ length: 60 }, (_, i) => 2 ** i)

export class Charts {
  readonly #samples: Sample[] = []
  #plots: uPlot[] = []

  constructor() {
    this.#draw()
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => this.#draw())
    const resized = new ResizeObserver(() => {
      for (const [i, spec] of SPECS.entries()) {
        const width = document.getElementById(spec.id)!.clientWidth
        if (width > 0 && width !== this.#plots[i]!.width) {
          this.#plots[i]!.setSize({ width, height: heightOf(spec) })
        }
      }
    })
    for (const { id } of SPECS) resized.observe(document.getElementById(id)!)
  }

  add(samples: readonly Sample[]): void {
    for (const sample of samples) {
      if (sample.time > (this.#samples.at(-1)?.time ?? 0)) this.#samples.push(sample)
    }
    this.#samples.splice(0, Math.max(0, this.#samples.length - KEPT))
    for (const [i, spec] of SPECS.entries()) this.#plots[i]!.setData(this.#data(spec))
  }

  #data({ lines }: Spec): uPlot.AlignedData {
    const samples = this.#samples
    return [samples.map(({ time }) => time), ...lines.map(({ of }) => samples.map(of))]
  }

  #draw(): void {
    for (const plot of this.#plots) plot.destroy()
    const axis = { stroke: colour('--quiet'), grid: { stroke: colour('--line'), width: 1 } }
    this.#plots = SPECS.map(spec => {
      const { id, lines, text, inBytes } = spec
      const host = document.getElementById(id)!
      return new uPlot(
        {
          width: Math.max(200, host.clientWidth),
          height: heightOf(spec),
          cursor: { drag: { x: false, y: false } },
          scales: { y: { range: (_, _low, high) => [0, Math.max(high * 1.1, 1e-3)] } },
          axes: [
            {
              ...axis,
              ticks: { show: false },
              space: 90,
              values: (_, times, _axis, _space, step) => times.map(time => timeText(time, step)),
            },
            {
              ...axis,
              ticks: { show: false },
              size: 72,
              values: (_, values) => values.map(text),
              ...(inBytes ? { incrs: BYTE_STEPS } : {}),
            },
          ],
          series: [
            { label: 'time', value: (_, time) => (time === null ? '–' : timeText(time)) },
            ...lines.map(line => ({
              label: line.label,
              stroke: colour(line.colour),
              width: 2,
              ...(line.fill ? { fill: `${colour(line.colour)}33` } : {}),
              value: (_: uPlot, value: number | null) => (value === null ? '–' : text(value)),
            })),
          ],
        },
        this.#data(spec),
        host,
      )
    })
  }
}
