/**
 * On-disk and wire structures as tables that check themselves.
 *
 * `layout()` throws at load when fields leave a gap, overlap or do not add up to the stated size.
 * `.at.field` gives hot code a plain offset; `.read`/`.write` serve cold code. docs/FORMAT.md
 * prints these tables.
 */
import { readU64, writeU64 } from './u64.js'

type Scalar = 'u8' | 'u16' | 'u32' | 'i32' | 'u64'
/** `bytes:N` is an opaque area of N bytes, skipped by read and write. */
export type FieldType = Scalar | `bytes:${number}`
/** [offset, type, meaning] */
export type Field = readonly [offset: number, type: FieldType, meaning: string]
type Fields = Readonly<Record<string, Field>>

type ScalarNames<F extends Fields> = {
  [K in keyof F]: F[K][1] extends Scalar ? K : never
}[keyof F]

export interface Layout<F extends Fields> {
  readonly name: string
  readonly size: number
  readonly fields: F
  /** Byte offset of each field from the structure's start. */
  readonly at: { readonly [K in keyof F]: F[K][0] }
  /** All number fields at byte `base`. u64 must fit 2^53. */
  read(view: DataView, base: number): Record<ScalarNames<F>, number>
  /** Writes the number fields given; others keep what they hold. */
  write(view: DataView, base: number, values: Partial<Record<ScalarNames<F>, number>>): void
}

const SCALAR_SIZE: Record<Scalar, number> = { u8: 1, u16: 2, u32: 4, i32: 4, u64: 8 }
const isScalar = (type: FieldType): type is Scalar => type in SCALAR_SIZE
const sizeOf = (type: FieldType): number =>
  isScalar(type) ? SCALAR_SIZE[type] : Number(type.slice('bytes:'.length))

/** Declares a structure of `size` bytes. Throws on a gap, an overlap or a wrong total. */
export function layout<const F extends Fields>(name: string, size: number, fields: F): Layout<F> {
  let end = 0
  for (const [field, [offset, type]] of Object.entries(fields)) {
    if (offset !== end) throw new Error(`layout ${name}.${field}: at ${offset}, expected ${end}`)
    end = offset + sizeOf(type)
  }
  if (end !== size) throw new Error(`layout ${name}: ${end} bytes, expected ${size}`)
  const at = Object.fromEntries(Object.entries(fields).map(([k, f]) => [k, f[0]]))
  const scalars = Object.entries(fields).filter(([, f]) => isScalar(f[1]))
  return {
    name,
    size,
    fields,
    at: at as Layout<F>['at'],
    read(view, base) {
      const out: Record<string, number> = {}
      for (const [key, [offset, type]] of scalars) out[key] = readScalar(view, base + offset, type)
      return out as Record<ScalarNames<F>, number>
    },
    write(view, base, values) {
      const given = values as Record<string, number | undefined>
      for (const [key, [offset, type]] of scalars) {
        const value = given[key]
        if (value !== undefined) writeScalar(view, base + offset, type, value)
      }
    },
  }
}

function readScalar(view: DataView, at: number, type: FieldType): number {
  switch (type) {
    case 'u8':
      return view.getUint8(at)
    case 'u16':
      return view.getUint16(at, true)
    case 'u32':
      return view.getUint32(at, true)
    case 'i32':
      return view.getInt32(at, true)
    default:
      return readU64(view, at)
  }
}

function writeScalar(view: DataView, at: number, type: FieldType, value: number): void {
  switch (type) {
    case 'u8':
      view.setUint8(at, value)
      break
    case 'u16':
      view.setUint16(at, value, true)
      break
    case 'u32':
      view.setUint32(at, value, true)
      break
    case 'i32':
      view.setInt32(at, value, true)
      break
    default:
      writeU64(view, at, value)
  }
}
