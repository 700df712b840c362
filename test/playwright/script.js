// Gives the storageState of standard input to an unmodified Playwright and says what its context has then: its cookies, the
// localStorage that pages of its origins see, and the storageState that it gives back.
import { readFileSync } from 'node:fs';
import { chromium } from 'playwright-core';

const storageState = JSON.parse(readFileSync(0, 'utf8'));
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ['--no-sandbox'], timeout: 30000 });
try {
  const context = await browser.newContext({ storageState });
  await context.route('**/*', route => route.fulfill({ contentType: 'text/html', body: '<title>page</title>' }));
  const page = await context.newPage();
  const seen = {};
  for (const { origin } of storageState.origins) {
    await page.goto(origin + '/', { timeout: 10000 });
    seen[origin] = await page.evaluate(() => ({ ...localStorage }));
  }
  console.log(JSON.stringify({ cookies: (await context.cookies()).length, seen, state: await context.storageState() }));
} finally {
  await browser.close();
}
