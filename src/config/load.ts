/**
 * pool.yaml → PoolConfig.
 *
 * The file is read with YAML's failsafe schema, in which every scalar is the text that stands
 * there: a volume named `007` or `no` keeps its name. The first problem in the file is the one
 * reported.
 */
import { closeSync, constants, fstatSync, openSync, readFileSync } from 'node:fs'
import { basename, dirname, resolve } from 'node:path'
import {
  Composer,
  type CST,
  type Document,
  isAlias,
  isMap,
  isScalar,
  isSeq,
  LineCounter,
  type Node,
  type ParsedNode,
  Parser,
  visit,
} from 'yaml'
import type * as z from 'zod'
import {
  type CephAccess,
  errnoOf,
  inFolder,
  MIB,
  type NbdAddress,
  type RbdAddress,
  type RemoteAddress,
  ThinfsError,
  withoutPassword,
} from '../base/index.js'
import { placeOf } from './place.js'
import {
  type Autoextend,
  DEFAULTS,
  type PoolConfig,
  type TenancyConfig,
  type VolumeConfig,
} from './pool-config.js'
import { POOL_YAML } from './schema.js'
import { isOwnName, mustBeOf, mustBeTrusted } from './trust.js'

const FILE_SIZE_MAX = MIB
/** At most so many problems are located in the file, to find the first of them. */
const PROBLEMS_MAX = 100
/** Lists and maps in each other: a pool.yaml has three levels. */
const NESTING_MAX = 32
/** Nodes that aliases may stand for, together: a pool.yaml has a use for a few. */
const ALIASES_MAX = 100

/**
 * Reads and checks a pool.yaml.
 * @param options.reads nothing will be written, nor anybody asked: root may read another user's
 *   copy
 * @throws BAD_CONFIG naming file, line, column, what stands there and what is allowed; NOT_TRUSTED
 *   when another user could have written it, or what thinfs keeps beside it
 */
export function loadConfig(path: string, { reads = false } = {}): PoolConfig {
  const { file, ofUser } = placeOf(path, { reads })
  const config = parseConfig(readText(file, path, ofUser), path, file)
  return ofUser === undefined ? config : { ...config, ofUser }
}

/**
 * Checks the text of a pool.yaml.
 * @param path what messages call it
 * @param file its absolute path; relative paths in it count from there
 * @throws BAD_CONFIG
 */
export function parseConfig(text: string, path: string, file: string): PoolConfig {
  const lines = new LineCounter()
  const problem = (offset: number, message: string): ThinfsError => {
    const { line, col } = lines.linePos(offset)
    return new ThinfsError('BAD_CONFIG', `${path}:${line || 1}:${col || 1}: ${message}`)
  }

  const tokens = [...new Parser(lines.addNewLine).parse(text)]
  const deep = tooDeep(tokens)
  if (deep) throw problem(deep.offset, `nested deeper than ${NESTING_MAX} levels`)
  const composer = new Composer({
    schema: 'failsafe',
    prettyErrors: false,
    uniqueKeys: false, // yaml's own test is quadratic; duplicateKey() is not
  })
  const [document, second] = [...composer.compose(tokens, true, text.length)]
  if (!document) throw problem(0, 'a document is wanted')
  if (second) throw problem(second.range[0], 'a second document, where one is allowed')
  const broken = document.errors[0] ?? document.warnings[0] ?? duplicateKey(document)
  if (broken) throw problem(broken.pos[0], broken.message)
  const parsed = POOL_YAML.safeParse(toPlain(document, path))
  if (parsed.success) {
    const config = toConfig(file, parsed.data)
    for (const key of ['data', 'metadata'] as const) {
      const { path, remote } = config[key]
      if (remote !== undefined || !isOwnFile(config, path)) continue
      const found = `${key}.path: ${parsed.data[key].path ?? basename(path)} is not allowed`
      throw problem(
        locate(document, [key, 'path']).offset,
        `${found}; a file that thinfs does not write for itself`,
      )
    }
    return config
  }
  const problems = parsed.error.issues
    .slice(0, PROBLEMS_MAX)
    .flatMap(issue => describe(document, issue))
  // A key that is missing may be one that is misspelt elsewhere.
  problems.sort((a, b) => Number(a.isMissing) - Number(b.isMissing) || a.offset - b.offset)
  throw problem(problems[0]!.offset, problems[0]!.message)
}

/** The first token that is nested too deeply: reading on would use up the stack. */
function tooDeep(tokens: readonly CST.Token[]): CST.Token | null {
  let level: CST.Token[] = [...tokens]
  for (let depth = 0; level.length > 0; depth++) {
    if (depth > NESTING_MAX) return level[0]!
    level = level.flatMap(token => {
      if (token.type === 'document') return token.value ? [token.value] : []
      if (!('items' in token)) return []
      return token.items.flatMap(({ key, value }) => [key, value].filter(isToken))
    })
  }
  return null
}

const isToken = (token: CST.Token | null | undefined): token is CST.Token => !!token

/** The text of the file. */
function readText(file: string, path: string, ofUser: number | undefined): string {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(readTrusted(file, path, ofUser))
  } catch (err) {
    if (err instanceof ThinfsError) throw err
    const isUtf8 = (err as NodeJS.ErrnoException).code !== 'ERR_ENCODING_INVALID_ENCODED_DATA'
    throw new ThinfsError('BAD_CONFIG', `${path}: ${isUtf8 ? 'cannot be read' : 'is not UTF-8'}`, {
      cause: err,
      errno: isUtf8 ? errnoOf(err) : 'EINVAL',
    })
  }
}

function readTrusted(file: string, path: string, ofUser: number | undefined): Buffer {
  const { O_RDONLY, O_NOFOLLOW, O_NONBLOCK } = constants
  const fd = openSync(file, O_RDONLY | O_NOFOLLOW | O_NONBLOCK)
  try {
    const stat = fstatSync(fd)
    if (ofUser === undefined) mustBeTrusted(path, stat)
    else mustBeOf(ofUser, path, stat)
    if (stat.size > FILE_SIZE_MAX) {
      throw new ThinfsError('BAD_CONFIG', `${path}: has ${stat.size} bytes; 1 MiB is allowed`)
    }
    return readFileSync(fd)
  } finally {
    closeSync(fd)
  }
}

function duplicateKey(document: Document.Parsed): { pos: [number]; message: string } | null {
  let found: { pos: [number]; message: string } | null = null
  visit(document, {
    Map(_, map) {
      const seen = new Set<string>()
      for (const { key } of map.items) {
        const name = keyOf(key)
        if (seen.has(name)) {
          found = { pos: [(key as Node).range![0]], message: `${name} is there twice` }
          return visit.BREAK
        }
        seen.add(name)
      }
      return undefined
    },
  })
  return found
}

const keyOf = (key: unknown): string => (isScalar(key) ? String(key.value) : String(key))

/** The document for the schema: plain values, `volumes` as a Map, and nothing for an empty one. */
function toPlain(document: Document.Parsed, path: string): unknown {
  let plain: unknown
  try {
    plain = document.toJS({ maxAliasCount: ALIASES_MAX })
  } catch (err) {
    throw new ThinfsError('BAD_CONFIG', `${path}: ${(err as Error).message}`, { cause: err })
  }
  if (typeof plain !== 'object' || plain === null || !('volumes' in plain)) return plain
  const { volumes, ...others } = plain
  if (volumes === '') return others
  const isPlainMap = typeof volumes === 'object' && volumes !== null && !Array.isArray(volumes)
  return { ...others, volumes: isPlainMap ? new Map(Object.entries(volumes)) : volumes }
}

interface Problem {
  offset: number
  message: string
  isMissing: boolean
}

/** An issue for people: the key, the value that was found, and what is allowed. */
function describe(document: Document.Parsed, issue: z.core.$ZodIssue): Problem[] {
  const path = issue.path.map(String)
  if (issue.code === 'unrecognized_keys') {
    return issue.keys.slice(0, PROBLEMS_MAX).map(key => ({
      offset: locate(document, [...path, key]).keyOffset,
      message: `${[...path, key].join('.')} is not known; allowed are ${issue.message}`,
      isMissing: false,
    }))
  }
  const { value, offset, keyOffset } = locate(document, path)
  // The schema tests a volume's map key by key, so an issue of the map itself is one of its name.
  if (path[0] === 'volumes' && path.length === 2 && isMap(value)) {
    const message = `volumes: ${JSON.stringify(path[1])}: ${issue.message}`
    return [{ offset: keyOffset, message, isMissing: false }]
  }
  const name = path.join('.') || 'the file'
  const isMissing = value === undefined
  const found = isMissing ? 'is missing' : `${show(value)} is not allowed`
  return [{ offset, message: `${name}: ${found}; ${issue.message}`, isMissing }]
}

function show(value: ParsedNode | null): string {
  if (isMap(value)) return 'a map'
  if (isSeq(value)) return 'a list'
  const text = isScalar(value) ? withoutPassword(String(value.value)) : ''
  if (text === '') return 'nothing'
  return text.length > 100 || /\p{Cc}/u.test(text) ? JSON.stringify(text.slice(0, 100)) : text
}

/**
 * The value at `path` (undefined: none there) and where it stands, or the innermost map or list
 * that is there; also where its key stands.
 */
function locate(document: Document.Parsed, path: readonly string[]) {
  let value: ParsedNode | null | undefined = document.contents
  let offset = value?.range[0] ?? 0
  let keyOffset = offset
  for (const name of path) {
    if (isAlias(value)) value = value.resolve(document) as ParsedNode | undefined
    if (isSeq(value)) {
      value = value.items[Number(name)] as ParsedNode | undefined
      offset = value?.range[0] ?? offset
      keyOffset = offset
      continue
    }
    const pair: { key: unknown; value: unknown } | undefined = isMap(value)
      ? value.items.find(({ key }) => keyOf(key) === name)
      : undefined
    if (!pair) return { value: undefined, offset, keyOffset }
    value = pair.value as ParsedNode | null
    keyOffset = (pair.key as ParsedNode).range[0]
    offset = value?.range[0] ?? keyOffset
  }
  return { value, offset, keyOffset }
}

function toConfig(file: string, yaml: z.infer<typeof POOL_YAML>): PoolConfig {
  const folder = dirname(file)
  const ceph = yaml.ceph ?? { ...DEFAULTS.ceph }
  const placeIn = (keys: RemoteKeys & { path?: string | undefined }, path: string) => {
    const remote = remoteOf(keys, folder, ceph)
    return remote ? { path: remote.text, remote } : { path: resolve(folder, keys.path ?? path) }
  }
  const remoteState = remoteOf(yaml.state ?? {}, folder, ceph)
  const hasImages = yaml.data.rbd !== undefined
  return {
    file,
    folder,
    pool: yaml.pool,
    data: {
      ...placeIn(yaml.data, DEFAULTS.dataPath),
      size: yaml.data.size ?? null,
      ...(yaml.data.extents && { extents: yaml.data.extents }),
      ...toAutoextend(yaml.data.autoextend),
    },
    metadata: {
      ...placeIn(yaml.metadata, DEFAULTS.metadataPath),
      size: yaml.metadata.size ?? 'auto',
      ...(yaml.metadata.extents && { extents: yaml.metadata.extents }),
      ...toAutoextend(yaml.metadata.autoextend),
    },
    ...(remoteState && { state: { path: remoteState.text, remote: remoteState } }),
    ...(hasImages && { ceph }),
    ...(remoteOf(yaml.data, folder, ceph) && { cache: toCache(yaml.cache) }),
    ...(yaml.tenancy && { tenancy: toTenancy(yaml.tenancy) }),
    dataBlockSize: yaml.data_block_size,
    lowWaterMark: yaml.low_water_mark,
    discards: yaml.discards,
    onFull: yaml.on_full,
    queueTimeout: yaml.queue_timeout,
    ...(yaml.min_free_space !== undefined && { minFreeSpace: yaml.min_free_space }),
    ...(yaml.hooks !== undefined && { hooks: yaml.hooks }),
    transport: yaml.transport,
    spin: yaml.spin,
    spinShare: yaml.spin_share,
    volumes: toVolumes(yaml.volumes, folder),
  }
}

interface RemoteKeys {
  nbd?: NbdAddress | undefined
  rbd?: RbdAddress | undefined
}

/** The address of a store that another machine has. */
function remoteOf(
  { nbd, rbd }: RemoteKeys,
  folder: string,
  ceph: CephAccess,
): RemoteAddress | undefined {
  return nbd ? inFolder(nbd, folder) : rbd && { ...rbd, ...ceph }
}

function toCache(cache: z.infer<typeof POOL_YAML>['cache']): NonNullable<PoolConfig['cache']> {
  const { size = DEFAULTS.cacheSize, dirty } = cache ?? {}
  return { size, ...(dirty !== undefined && { dirty }) }
}

function toTenancy({
  locks,
  fence,
}: NonNullable<z.infer<typeof POOL_YAML>['tenancy']>): TenancyConfig {
  return { locks, ...(fence !== undefined && { fence }) }
}

/** Whether thinfs would write to a path, or remove it, as one of the files beside pool.yaml. */
const isOwnFile = ({ file, folder }: PoolConfig, path: string): boolean =>
  path === file || (dirname(path) === folder && isOwnName(basename(path)))

function toAutoextend(rule: z.infer<typeof POOL_YAML>['data']['autoextend']): {
  autoextend?: Autoextend
} {
  return rule === undefined ? {} : { autoextend: { ...rule, max: rule.max ?? null } }
}

const isSizedByOrigin = (volume: { size?: number | undefined; snapshot_of?: string | undefined }) =>
  volume.size === undefined && volume.snapshot_of !== undefined

/** A snapshot without a size has its origin's. The schema has refused circles of origins. */
function toVolumes(
  all: z.infer<typeof POOL_YAML>['volumes'],
  folder: string,
): Record<string, VolumeConfig> {
  const sizes = new Map<string, number | null>()
  const line: string[] = []
  for (const first of all.keys()) {
    let name = first
    while (!sizes.has(name) && isSizedByOrigin(all.get(name)!)) {
      line.push(name)
      name = all.get(name)!.snapshot_of!
    }
    const size = sizes.get(name) ?? all.get(name)!.size ?? null
    sizes.set(name, size)
    for (const snapshot of line.splice(0)) sizes.set(snapshot, size)
  }
  return Object.fromEntries(
    [...all].map(
      ([name, { id, snapshot_of: snapshotOf, external_origin: path, limit, reserve }]) => [
        name,
        {
          size: sizes.get(name)!,
          ...(id !== undefined && { id }),
          ...(snapshotOf !== undefined && { snapshotOf }),
          ...(limit !== undefined && { limit }),
          ...(reserve !== undefined && { reserve }),
          ...(path !== undefined && { externalOrigin: resolve(folder, path) }),
        },
      ],
    ),
  )
}
