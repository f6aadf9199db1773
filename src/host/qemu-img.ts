/** qemu-img(1), which knows the formats of disk images. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { statSync } from 'node:fs'
import { resolve } from 'node:path'
import { text } from 'node:stream/consumers'
import { errnoOf, ThinfsError } from '../base/index.js'

/** A file of a chain of overlays. */
export interface ImageLayer {
  /** Absolute path. */
  path: string
  format: string
  /** Bytes that a guest sees. */
  size: number
}

/** A range of an image, in bytes. */
export interface ImageRange {
  offset: number
  length: number
}

/** The descriptor that `qemuImg` passes on, by the name that it has in the program. */
export const PASSED = '/proc/self/fd/3'

/**
 * Runs qemu-img, which has to succeed.
 * @param fd is open in the program, as PASSED
 * @returns what it prints
 * @throws TOOL_FAILED
 */
export async function qemuImg(args: readonly string[], fd?: number): Promise<string> {
  const child = spawn('qemu-img', args, { stdio: ['ignore', 'pipe', 'pipe', fd ?? 'ignore'] })
  const said = Promise.all([text(child.stdout!), text(child.stderr!)])
  try {
    const [status] = (await once(child, 'close')) as [number | null]
    const [stdout, stderr] = await said
    if (status === 0) return stdout
    const why = stderr.trim().replace(/^qemu-img: /, '') || `it ended with status ${status}`
    throw new ThinfsError('TOOL_FAILED', `qemu-img: ${why}`)
  } catch (err) {
    if (errnoOf(err) !== 'ENOENT' || err instanceof ThinfsError) throw err
    const how = 'qemu-img: is not installed: apt-get install qemu-utils'
    throw new ThinfsError('TOOL_FAILED', how, { cause: err })
  }
}

/**
 * An image and the files that it is an overlay of, the oldest first.
 * @param format that of `path`; null: qemu-img looks
 * @throws TOOL_FAILED; BAD_ARGUMENT for a chain that leads to something else than a file, or for an
 *   image without its content
 */
export async function imageChain(path: string, format: string | null): Promise<ImageLayer[]> {
  const as = format === null ? [] : ['-f', format]
  const info = await qemuImg(['info', '--backing-chain', '--output=json', ...as, resolve(path)])
  const layers = JSON.parse(info) as Record<string, unknown>[]
  return layers.reverse().map(layer => {
    const name = String(layer.filename)
    const isNamed = name === resolve(path)
    // A disk that a person names is one to be read, one that an image names is not.
    if (!isNamed && !statSync(name, { throwIfNoEntry: false })?.isFile()) {
      const what = `${path}: it is an overlay of ${name}, which is no file`
      throw new ThinfsError('BAD_ARGUMENT', what)
    }
    const dataFile = (layer['format-specific'] as FormatSpecific | undefined)?.data?.['data-file']
    if (dataFile !== undefined) {
      const what = `${name}: its content is in another file, ${dataFile}`
      const how = 'qemu-img convert makes one image of both'
      throw new ThinfsError('BAD_ARGUMENT', `${what}; ${how}`)
    }
    return {
      path: resolve(name),
      format: String(layer.format),
      size: Number(layer['virtual-size']),
    }
  })
}

interface FormatSpecific {
  /** Of qcow2: the file that has the content, where that is another one. */
  data?: { 'data-file'?: string }
}

interface MapEntry {
  start: number
  length: number
  /** How many files further down the range comes from. */
  depth: number
  /** Whether some file of the chain has the range; qemu-img before 6.1 does not say. */
  present?: boolean
}

/** The ranges of an overlay that hide the image below: data or zeros. @throws TOOL_FAILED */
export async function rangesOf({ path, format }: ImageLayer): Promise<ImageRange[]> {
  const map = await qemuImg(['map', '--output=json', '-f', format, path])
  return (JSON.parse(map) as MapEntry[])
    .filter(({ depth, present }) => depth === 0 && present !== false)
    .map(({ start, length }) => ({ offset: start, length }))
}

/**
 * Writes what is no hole of an image, or of an overlay alone, to a file that reads as zeros there.
 * @param isOverlay leave out what shows through from below
 * @param fd of the file
 * @throws TOOL_FAILED
 */
export async function copyOut(layer: ImageLayer, isOverlay: boolean, fd: number): Promise<void> {
  const { path, format } = layer
  const alone = { driver: format, file: { driver: 'file', filename: path }, backing: null }
  const source = isOverlay ? [`json:${JSON.stringify(alone)}`] : ['-f', format, path]
  await qemuImg(['convert', '-n', '--target-is-zero', '-O', 'raw', ...source, PASSED], fd)
}

/**
 * Makes an image of a file, whose holes it keeps.
 * @param fd of the file
 * @throws TOOL_FAILED
 */
export async function copyIn(fd: number, path: string, format: string): Promise<void> {
  // An absolute path is neither an option nor what qemu-img takes for a protocol, as `web:1.img`.
  const target = resolve(path)
  await qemuImg(['convert', '-t', 'writeback', '-f', 'raw', '-O', format, PASSED, target], fd)
}
