import { existsSync, mkdirSync, readlinkSync, symlinkSync, writeFileSync } from 'node:fs'
import t from 'tap'
import { Device } from '../../src/dm/device-table.js'
import { Links, volumeOf } from '../../src/dm/links.js'
import { withDeviceMapper } from '../../src/dm/proc-devices.js'

const UUID = `LVM-${'a'.repeat(64)}`

t.test('group and volume of a name, as dmsetup splitname has them', async t => {
  const cases: [name: string, uuid: string, volume: [string, string] | null][] = [
    ['vg-lv', UUID, ['vg', 'lv']],
    ['my--group-a--b--c', UUID, ['my-group', 'a-b-c']],
    ['vg-pool', `${UUID}-pool`, null],
    ['vg-lv', 'other', null],
    ['vg', UUID, null],
    ['vg-lv-x', UUID, null],
    ['..-lv', UUID, null],
    ['vg-..', UUID, null],
  ]
  for (const [name, uuid, volume] of cases) t.same(volumeOf({ name, uuid }), volume, name)
})

t.test('links come and go with devices; those of others stay', async t => {
  const dev = t.testdir()
  const links = new Links(dev)
  const device = (name: string): Device => new Device({ major: 7, minor: 1000 }, name, UUID)
  links.up(device('vg-lv'), 0)
  t.equal(readlinkSync(`${dev}/vg/lv`), '../mapper/vg-lv')
  links.up(device('vg-hidden'), 0x2)
  t.notOk(existsSync(`${dev}/vg/hidden`), 'udev flags hide it')
  links.down(device('vg-lv'))
  t.notOk(existsSync(`${dev}/vg`), 'the folder goes with the last')
  mkdirSync(`${dev}/other`)
  symlinkSync('elsewhere', `${dev}/other/lv`)
  links.up(device('other-lv'), 0)
  links.down(device('other-lv'))
  t.equal(readlinkSync(`${dev}/other/lv`), 'elsewhere')
  writeFileSync(`${dev}/null`, '')
  t.doesNotThrow(() => links.up(device('null-lv'), 0), 'what is no folder hinders nobody')
})

t.test('/proc/devices has a line more', async t => {
  const text = 'Character devices:\n  7 vcs\n\nBlock devices:\n  7 loop\n253 zram\n'
  t.equal(withDeviceMapper(text), text.replace('  7 loop\n', '  7 loop\n  7 device-mapper\n'))
})
