// An unmodified webdriverio drives one session through the orchestrator's Selenium route.
//
//   DRIFTSTACK_URL             of the orchestrator
//   DRIFTSTACK_SERVICE_TOKEN   sent as a header: with user and key, webdriverio authenticates New Session and no other command
//   DRIFTSTACK_ACCOUNT         whose session it is
//   SITE                       of devstack's sample site
//
// Exits 0 and prints what it saw as JSON when all of it was as it should be.
import assert from 'node:assert/strict';
import { remote } from 'webdriverio';

const { DRIFTSTACK_URL, DRIFTSTACK_SERVICE_TOKEN, DRIFTSTACK_ACCOUNT, SITE } = process.env;
assert(DRIFTSTACK_URL && DRIFTSTACK_SERVICE_TOKEN && DRIFTSTACK_ACCOUNT && SITE, 'set the variables named at the top of this file');

const server = new URL(DRIFTSTACK_URL);
const connection = {
  protocol: server.protocol.replace(':', ''),
  hostname: server.hostname,
  port: Number(server.port),
  path: '/wd/hub',
  headers: { Authorization: `Bearer ${DRIFTSTACK_SERVICE_TOKEN}` },
  logLevel: 'silent',
  connectionRetryCount: 0,
};
const safari = {
  browserName: 'safari',
  timeouts: { implicit: 0, pageLoad: 60_000, script: 20_000 },
  'driftstack:options': { account: DRIFTSTACK_ACCOUNT, name: 'webdriverio', labels: { client: 'webdriverio' } },
};

// Safari has no BiDi, and who asks for it is told so.
await assert.rejects(remote({ ...connection, capabilities: { ...safari, webSocketUrl: true } }), /webSocketUrl/);

const browser = await remote({ ...connection, capabilities: safari });
const session = browser.sessionId;
let title, count, screenshot;
try {
  assert.equal(browser.capabilities.browserName, 'safari');
  assert.equal(browser.isBidi, false);
  const timeouts = await browser.getTimeouts();
  assert.equal(timeouts.pageLoad, 60_000);
  assert.equal(timeouts.script, 20_000);

  await browser.url(`${SITE}/login`);
  await browser.$('#user').setValue('ada');
  await browser.$('#password').setValue('lovelace');
  await browser.$('#submit').click();
  const who = browser.$('#who');
  await who.waitForExist({ timeout: 15_000 });
  assert.equal(await who.getText(), 'Logged in as ada.');

  title = await browser.getTitle();
  assert.match(title, /^Home/);

  await browser.url(`${SITE}/counter`);
  for (let i = 0; i < 3; i++) await browser.$('#add').click();
  count = await browser.$('#count').getText();
  assert.equal(count, '3');
  assert.equal(await browser.execute((a, b) => a + b + Number(document.querySelector('#count').textContent), 20, 1), 24);

  screenshot = Buffer.from(await browser.takeScreenshot(), 'base64');
  assert.equal(screenshot.subarray(1, 4).toString(), 'PNG');

  assert.equal(await browser.$('#no-such-thing').isExisting(), false);
  await assert.rejects(browser.getAlertText(), /no such alert/);
} finally {
  await browser.deleteSession();
}
console.log(JSON.stringify({ session, title, count, screenshotBytes: screenshot.length }));
