/**
 * An image of two layers, made of a static busybox: what ctr imports, and docker loads, without a
 * network.
 */
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  chmodSync,
  copyFileSync,
  mkdirSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'

const APPLETS = ['sh', 'cat', 'dd', 'echo', 'ls', 'sleep', 'sync', 'true']
const MEDIA = 'application/vnd.oci.image'

interface Blob {
  digest: string
  size: number
}

/**
 * Makes `name` of `folder`, whose reference is docker.io/library/bb:1.
 * @returns the chain id of its layers
 */
export function makeImage(folder: string, name: string): string {
  const image = join(folder, `${name}.d`)
  const blobs = join(image, 'blobs/sha256')
  mkdirSync(blobs, { recursive: true })
  const put = (content: Buffer | string): Blob => {
    const digest = createHash('sha256').update(content).digest('hex')
    writeFileSync(join(blobs, digest), content)
    return { digest: `sha256:${digest}`, size: Buffer.byteLength(content) }
  }
  const layers = [baseLayer(folder), secondLayer(folder)].map(put)
  const config = put(
    JSON.stringify({
      architecture: process.arch === 'arm64' ? 'arm64' : 'amd64',
      os: 'linux',
      config: { Env: ['PATH=/bin'], Cmd: ['/bin/sh'] },
      rootfs: { type: 'layers', diff_ids: layers.map(({ digest }) => digest) },
      history: layers.map(() => ({ created_by: 'test' })),
    }),
  )
  const manifest = put(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: `${MEDIA}.manifest.v1+json`,
      config: { mediaType: `${MEDIA}.config.v1+json`, ...config },
      layers: layers.map(layer => ({ mediaType: `${MEDIA}.layer.v1.tar`, ...layer })),
    }),
  )
  const annotations = { 'io.containerd.image.name': 'docker.io/library/bb:1' }
  const entry = { mediaType: `${MEDIA}.manifest.v1+json`, ...manifest, annotations }
  writeFileSync(join(image, 'oci-layout'), '{"imageLayoutVersion":"1.0.0"}')
  writeFileSync(join(image, 'index.json'), JSON.stringify({ schemaVersion: 2, manifests: [entry] }))
  // docker load's own form beside it.
  const pathOf = ({ digest }: Blob): string => `blobs/sha256/${digest.slice('sha256:'.length)}`
  const loaded = [{ Config: pathOf(config), RepoTags: ['bb:1'], Layers: layers.map(pathOf) }]
  writeFileSync(join(image, 'manifest.json'), JSON.stringify(loaded))
  execFileSync('tar', ['-C', image, '-cf', join(folder, name), '.'])
  const chain = layers.map(({ digest }) => digest).join(' ')
  return `sha256:${createHash('sha256').update(chain).digest('hex')}`
}

function baseLayer(folder: string): Buffer {
  const root = join(folder, 'layer-1')
  for (const name of ['bin', 'etc', 'proc', 'sys', 'dev', 'tmp']) {
    mkdirSync(join(root, name), { recursive: true })
  }
  chmodSync(join(root, 'tmp'), 0o1777)
  const busybox = execFileSync('sh', ['-c', 'command -v busybox'], { encoding: 'utf8' }).trim()
  copyFileSync(busybox, join(root, 'bin/busybox'))
  for (const applet of APPLETS) symlinkSync('busybox', join(root, 'bin', applet))
  writeFileSync(join(root, 'etc/passwd'), 'root:x:0:0:root:/root:/bin/sh\n')
  return packed(root)
}

function secondLayer(folder: string): Buffer {
  const root = join(folder, 'layer-2')
  mkdirSync(join(root, 'etc'), { recursive: true })
  writeFileSync(join(root, 'etc/second'), 'second layer\n')
  return packed(root)
}

function packed(root: string): Buffer {
  const tar = `${root}.tar`
  execFileSync('tar', ['-C', root, '--owner=0', '--group=0', '-cf', tar, '.'])
  return readFileSync(tar)
}
