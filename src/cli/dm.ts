import type { DmDeviceStatus, DmStatus } from '../control/index.js'
import { command, type Output, print } from './command.js'

interface Options extends Output {
  foreground?: true
  stop?: true
  status?: true
  logLevel: string
  logFile?: string
}

export const dm = command(
  'dm',
  'Be device-mapper to dmsetup, LVM, Docker and containerd, on a kernel without it.',
  'thinfs dm && dmsetup create pool --table "0 2097152 thin-pool /dev/loop1 /dev/loop0 128 0"',
)
  .option('-f, --foreground', 'stay until it is stopped, and log to stderr')
  .option('--stop', 'remove all devices, those on top first, and end; not while one is in use')
  .option('--status', 'print the devices as a tree: loop device, table, open count')
  .option('--log-level <level>', 'trace, debug, info, warn, error, fatal or silent', 'info')
  .option('--log-file <path>', 'default: /var/log/thinfs-dm.log')
  .action(async ({ foreground, stop, status, logLevel, logFile, ...output }: Options) => {
    const { dmStatus, startDm, stopDm } = await import('../dm/index.js')
    if (stop) {
      await stopDm()
      return print(output, {}, '')
    }
    if (status) {
      const found = await dmStatus()
      return print(output, found, treeOf(found))
    }
    const { pid } = await startDm({
      foreground: foreground ?? false,
      logLevel,
      ...(logFile !== undefined && { logFile }),
    })
    print(output, { pid }, '')
  })

/** Each device below those that it is made of, as `dmsetup ls --tree` has it. */
function treeOf({ devices, pid, enginePid }: DmStatus): string {
  const byNumber = new Map(devices.map(device => [device.number, device]))
  const used = new Set(devices.flatMap(({ below }) => below))
  const lines = [`service ${pid}, engine ${enginePid}`]
  const show = (device: DmDeviceStatus, depth: number): void => {
    const indent = '  '.repeat(depth)
    lines.push(`${indent}${device.name} ${device.loop} ${stateOf(device)}`)
    for (const line of device.table) lines.push(`${indent}  ${line}`)
    for (const number of device.below) {
      const lower = byNumber.get(number)
      if (lower !== undefined) show(lower, depth + 1)
    }
  }
  for (const device of devices) if (!used.has(device.number)) show(device, 0)
  return lines.join('\n')
}

function stateOf({ open, suspended, readOnly, deferredRemove, inactive }: DmDeviceStatus): string {
  return [
    `open ${open}`,
    ...(suspended ? ['suspended'] : []),
    ...(readOnly ? ['read-only'] : []),
    ...(deferredRemove ? ['goes with its last close'] : []),
    ...(inactive.length > 0 ? ['another table is loaded'] : []),
  ].join(', ')
}
