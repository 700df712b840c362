// An unmodified selenium-webdriver drives one session through the orchestrator's Selenium route.
//
//   DRIFTSTACK_URL             of the orchestrator
//   DRIFTSTACK_SERVICE_TOKEN   sent as the password of basic authentication, as grid clients do
//   DRIFTSTACK_ACCOUNT         whose session it is
//   SITE                       of devstack's sample site
//
// Exits 0 and prints what it saw as JSON when all of it was as it should be.
import assert from 'node:assert/strict';
import { Builder, By, Capabilities, until } from 'selenium-webdriver';

const { DRIFTSTACK_URL, DRIFTSTACK_SERVICE_TOKEN, DRIFTSTACK_ACCOUNT, SITE } = process.env;
assert(DRIFTSTACK_URL && DRIFTSTACK_SERVICE_TOKEN && DRIFTSTACK_ACCOUNT && SITE, 'set the variables named at the top of this file');

const server = new URL('/wd/hub', DRIFTSTACK_URL);
server.username = 'driftstack';
server.password = DRIFTSTACK_SERVICE_TOKEN;

const browser = await new Builder()
  .usingServer(server.href)
  .withCapabilities(new Capabilities({
    browserName: 'safari',
    'driftstack:options': { account: DRIFTSTACK_ACCOUNT, name: 'selenium-webdriver' },
  }))
  .build();
const session = (await browser.getSession()).getId();
let title, count, screenshot;
try {
  await browser.get(`${SITE}/login`);
  await browser.findElement(By.id('user')).sendKeys('ada');
  await browser.findElement(By.id('password')).sendKeys('lovelace');
  await browser.findElement(By.id('submit')).click();
  const who = await browser.wait(until.elementLocated(By.id('who')), 15_000);
  assert.equal(await who.getText(), 'Logged in as ada.');

  title = await browser.getTitle();
  assert.match(title, /^Home/);

  await browser.get(`${SITE}/counter`);
  for (let i = 0; i < 3; i++) await browser.findElement(By.id('add')).click();
  count = await browser.findElement(By.id('count')).getText();
  assert.equal(count, '3');

  screenshot = Buffer.from(await browser.takeScreenshot(), 'base64');
  assert.equal(screenshot.subarray(1, 4).toString(), 'PNG');

  await assert.rejects(browser.findElement(By.id('no-such-thing')), { name: 'NoSuchElementError' });
} finally {
  await browser.quit();
}
console.log(JSON.stringify({ session, title, count, screenshotBytes: screenshot.length }));
