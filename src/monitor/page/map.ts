/** The map of the data blocks: a cell is a run of neighbouring blocks. */
import { type Cells, cellText, colouredVolumes, kindOf, sizeText } from './words.js'

/** Width of a page, in pixels, from which on cells are large. */
const WIDE = 700

const byId = (id: string): HTMLElement => document.getElementById(id)!

export class BlockMapView {
  readonly #canvas = byId('map') as HTMLCanvasElement
  #cells: Cells | null = null
  /** Colour variables of volumes by place. */
  #colours = new Map<number, string>()
  #columns = 1
  #size = 10
  #cursor = 0

  constructor() {
    const canvas = this.#canvas
    new ResizeObserver(() => this.#draw()).observe(canvas)
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => this.#draw())
    canvas.addEventListener('keydown', event => this.#key(event))
    canvas.addEventListener('focus', () => this.#point(this.#cursor))
    canvas.addEventListener('blur', () => this.#draw())
    canvas.addEventListener('pointermove', event => {
      const column = Math.floor(event.offsetX / this.#size)
      const row = Math.floor(event.offsetY / this.#size)
      if (column < this.#columns) this.#point(row * this.#columns + column)
    })
  }

  show(cells: Cells | null): void {
    this.#cells = cells
    if (cells !== null) {
      const coloured = colouredVolumes(cells.volumes)
      this.#colours = new Map(coloured.map((place, i) => [place, `--owner-${i}`]))
      this.#legend(cells, coloured)
      const bytes = sizeText(cells.blocksPerCell * cells.dataBlockSize)
      const blocks = `${cells.blocks.toLocaleString('en')} blocks of ${sizeText(cells.dataBlockSize)}`
      byId('map-scale').textContent =
        cells.blocksPerCell === 1 ? `${blocks}, a cell each` : `${blocks}; a cell is ${bytes}`
    }
    this.#draw()
  }

  #legend({ volumes, used, exclusive }: Cells, coloured: readonly number[]): void {
    const total = (numbers: readonly number[]): number => numbers.reduce((all, one) => all + one, 0)
    const items: [colour: string, text: string][] = coloured.map((place, i) => {
      const { name, exclusive } = volumes[place]!
      return [`--owner-${i}`, `${name} alone: ${sizeText(exclusive)}`]
    })
    const others = volumes.filter(
      ({ exclusive }, place) => exclusive > 0 && !coloured.includes(place),
    )
    if (others.length > 0) items.push(['--quiet', `one of ${others.length} other volumes alone`])
    const cells = this.#cells!
    const shared = (total(used) - total(exclusive)) * cells.dataBlockSize
    items.push(['--shared', `shared: ${sizeText(shared)}`])
    items.push(['--free', `free: ${sizeText((cells.blocks - total(used)) * cells.dataBlockSize)}`])
    byId('map-legend').replaceChildren(
      ...items.map(([colour, text]) => {
        const item = document.createElement('li')
        const swatch = document.createElementNS('http://www.w3.org/2000/svg', 'svg')
        swatch.setAttribute('aria-hidden', 'true')
        const square = document.createElementNS('http://www.w3.org/2000/svg', 'rect')
        square.setAttribute('width', '12')
        square.setAttribute('height', '12')
        square.style.fill = `var(${colour})`
        square.style.stroke = 'var(--quiet)'
        swatch.append(square)
        item.append(swatch, text)
        return item
      }),
    )
  }

  #draw(): void {
    const canvas = this.#canvas
    const cells = this.#cells
    const width = canvas.clientWidth
    if (cells === null || width === 0) return
    const count = cells.used.length
    this.#size = width >= WIDE ? 10 : 5
    this.#columns = Math.max(1, Math.floor(width / this.#size))
    const height = Math.ceil(count / this.#columns) * this.#size
    const scale = devicePixelRatio
    canvas.style.height = `${height}px`
    canvas.width = Math.round(width * scale)
    canvas.height = Math.round(height * scale)
    const context = canvas.getContext('2d')!
    context.scale(scale, scale)
    const style = getComputedStyle(document.documentElement)
    const palette = new Map<string, string>()
    const paint = (name: string): string => {
      const known = palette.get(name) ?? style.getPropertyValue(name).trim()
      palette.set(name, known)
      return known
    }
    const gap = this.#size > 5 ? 1 : 0.5
    for (let i = 0; i < count; i++) {
      const x = (i % this.#columns) * this.#size
      const y = Math.floor(i / this.#columns) * this.#size
      const side = this.#size - gap
      context.globalAlpha = 1
      context.fillStyle = paint('--free')
      context.fillRect(x, y, side, side)
      const kind = kindOf(cells, i)
      if (kind === 'free') continue
      const name = kind === 'shared' ? '--shared' : (this.#colours.get(kind) ?? '--quiet')
      // The emptier, the paler, but never invisible.
      context.globalAlpha = 0.35 + (0.65 * cells.used[i]!) / cells.blocksPerCell
      context.fillStyle = paint(name)
      context.fillRect(x, y, side, side)
    }
    context.globalAlpha = 1
    if (document.activeElement === canvas) this.#mark(context, paint('--text'))
  }

  #mark(context: CanvasRenderingContext2D, colour: string): void {
    const x = (this.#cursor % this.#columns) * this.#size
    const y = Math.floor(this.#cursor / this.#columns) * this.#size
    context.strokeStyle = colour
    context.lineWidth = 2
    context.strokeRect(x - 0.5, y - 0.5, this.#size, this.#size)
  }

  #point(i: number): void {
    const cells = this.#cells
    if (cells === null || i < 0 || i >= cells.used.length) return
    this.#cursor = i
    byId('map-cell').textContent = cellText(cells, i)
    if (document.activeElement === this.#canvas) this.#draw()
  }

  #key(event: KeyboardEvent): void {
    const count = this.#cells?.used.length ?? 0
    const steps: Record<string, number> = {
      ArrowLeft: -1,
      ArrowRight: 1,
      ArrowUp: -this.#columns,
      ArrowDown: this.#columns,
      Home: -this.#cursor,
      End: count - 1 - this.#cursor,
    }
    const step = steps[event.key]
    if (step === undefined) return
    event.preventDefault()
    this.#point(this.#cursor + step)
  }
}
