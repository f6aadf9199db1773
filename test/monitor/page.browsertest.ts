// Goal: the page says what is so, as it happens, in either colour scheme, at 360 and 1600 pixels,
// without a mouse, and within its content security policy. Method: a mounted pool, `thinfs serve`
// beside it, and Chromium. Run by `npm run test:page`.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { type Browser, chromium, type Page } from 'playwright-core'
import t, { type Test } from 'tap'
import { PROGRAM } from '../cli/command-line.js'
import { MountedPool, needs, run, thinfs } from '../support/mounted-pool.js'

/** `thinfs serve` of a pool. @returns its URL */
async function served(t: Test, pool: MountedPool): Promise<string> {
  const args = [PROGRAM, 'serve', pool.folder, '--listen', '127.0.0.1:0']
  const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'] })
  t.teardown(async () => {
    child.kill()
    if (child.exitCode === null) await once(child, 'close')
  })
  const [line] = await once(child.stdout, 'data')
  return String(line).trim()
}

/** A page, and all that the browser has against it. */
async function opened(browser: Browser, url: string, width: number, scheme: 'light' | 'dark') {
  const page = await browser.newPage({ viewport: { width, height: 900 }, colorScheme: scheme })
  const complaints: string[] = []
  page.on('console', message => {
    if (message.type() !== 'log') complaints.push(message.text())
  })
  page.on('pageerror', err => complaints.push(err.message))
  await page.goto(url)
  await page.locator('#map-legend li').first().waitFor()
  await page.locator('#volumes tr').nth(2).waitFor()
  return { page, complaints }
}

/** How many colours the map has. */
const colours = (page: Page): Promise<number> =>
  page.locator('#map').evaluate(element => {
    const { width, height } = element as unknown as { width: number; height: number }
    const canvas = element as unknown as {
      getContext(kind: '2d'): {
        getImageData(x: number, y: number, w: number, h: number): { data: Uint8ClampedArray }
      }
    }
    const { data } = canvas.getContext('2d').getImageData(0, 0, width, height)
    const words = new Uint32Array(data.buffer)
    return new Set(words).size
  })

t.test('the page', needs('/dev/fuse'), async t => {
  const yaml = 'data: { size: 64M }\nvolumes: { web: { size: 32M }, db: { size: 8M } }'
  const pool = await MountedPool.make(t, yaml)
  await pool.sh('dd if=/dev/urandom of=web bs=1M count=20 conv=notrunc,fsync status=none')
  await thinfs('snapshot', pool.folder, 'web', 'web-monday')
  await pool.sh('dd if=/dev/urandom of=web bs=1M count=5 conv=notrunc,fsync status=none')
  const url = await served(t, pool)
  const executablePath = await run('which', 'chromium')
  const browser = await chromium.launch({ executablePath, args: ['--no-sandbox'] })
  t.teardown(() => browser.close())

  for (const width of [360, 1600]) {
    for (const scheme of ['light', 'dark'] as const) {
      const { page, complaints } = await opened(browser, url, width, scheme)
      const wide = await page.evaluate('document.documentElement.scrollWidth - innerWidth')
      t.equal(wide, 0, `${width}: nothing sticks out`)
      t.ok((await colours(page)) >= 4, 'free, shared, alone, and the gaps')
      t.same(complaints, [])
      await page.close()
    }
  }

  const { page, complaints } = await opened(browser, url, 1600, 'light')
  const { data } = await pool.status()
  const share = ((data.usedBlocks / data.blocks) * 100).toFixed(1)
  t.match(await page.locator('#data-text').textContent(), `(${share}%)`)
  t.equal(await page.getByRole('heading', { level: 1 }).textContent(), 'test')
  const names = await page.locator('#volumes th').allTextContents()
  t.same(names, ['db', 'web', '└ web-monday'])
  const row = await page.locator('#volumes tr').nth(1).locator('td').allTextContents()
  t.same(row.slice(0, 4), ['32.0M', '20.0M', '5.00M', '15.0M'])
  t.equal(await page.getByRole('meter', { name: 'Metadata' }).count(), 1)
  t.equal(await page.getByRole('img', { name: 'Data in use over time' }).count(), 1)

  await page.keyboard.press('Tab')
  t.equal(await page.evaluate('document.activeElement.id'), 'map')
  await page.keyboard.press('End')
  t.match(await page.locator('#map-cell').textContent(), /^block 1023: free$/)
  await page.keyboard.press('Home')
  await page.keyboard.press('ArrowRight')
  t.match(await page.locator('#map-cell').textContent(), /^block 1: 1 of 1 in use/)
  await page.keyboard.press('Tab')
  t.equal(
    await page.evaluate("document.activeElement.getAttribute('aria-labelledby')"),
    'h-volumes',
  )
  await page.keyboard.press('Tab')
  t.equal(await page.evaluate('document.activeElement.textContent'), 'Metrics')

  await thinfs('restart', pool.folder)
  await page.locator('#events li', { hasText: 'engine_restarted' }).waitFor()
  await pool.umount()
  await page.locator('#mode', { hasText: 'not mounted' }).waitFor()
  await page.locator('#notice', { hasText: 'not mounted' }).waitFor()
  await pool.mount()
  await page.locator('#mode', { hasText: 'write' }).waitFor()
  await page.locator('#notice').waitFor({ state: 'hidden' })
  t.same(complaints, [])
  await browser.close()
  await pool.close(t)
})
