// An unmodified selenium-webdriver uses WebDriver BiDi through the orchestrator: it connects to the webSocketUrl that New Session
// answered with, and knows nothing else of it.
//
//   DRIFTSTACK_URL             of the orchestrator, with a device whose driver offers BiDi
//   DRIFTSTACK_SERVICE_TOKEN   sent as the password of basic authentication, as grid clients do
//   DRIFTSTACK_ACCOUNT         whose session it is
//   SITE                       a page that logs "hello from the page"
//
// Exits 0 and prints what it saw as JSON when all of it was as it should be.
import assert from 'node:assert/strict';
import { Builder, Capabilities } from 'selenium-webdriver';
import browsingContext from 'selenium-webdriver/bidi/browsingContext.js';
import logInspector from 'selenium-webdriver/bidi/logInspector.js';

const { DRIFTSTACK_URL, DRIFTSTACK_SERVICE_TOKEN, DRIFTSTACK_ACCOUNT, SITE } = process.env;
assert(DRIFTSTACK_URL && DRIFTSTACK_SERVICE_TOKEN && DRIFTSTACK_ACCOUNT && SITE, 'set the variables named at the top of this file');

const server = new URL('/wd/hub', DRIFTSTACK_URL);
server.username = 'driftstack';
server.password = DRIFTSTACK_SERVICE_TOKEN;

const build = (browserName) => new Builder()
  .usingServer(server.href)
  .withCapabilities(new Capabilities({
    browserName,
    webSocketUrl: true,
    'driftstack:options': { account: DRIFTSTACK_ACCOUNT, name: 'selenium-webdriver BiDi', recording: false },
  }))
  .build();

await assert.rejects(async () => { await build('safari'); }, /Safari has no WebDriver BiDi/);

const browser = await build('chrome');
const session = (await browser.getSession()).getId();
const url = new URL((await browser.getCapabilities()).get('webSocketUrl'));
assert.equal(url.host, new URL(DRIFTSTACK_URL).host);
let logged, title;
try {
  const log = await logInspector(browser);
  const entry = new Promise((resolve) => { log.onConsoleEntry(resolve); });
  await log.onConsoleEntry(() => {}); // the subscription above is through, too
  const context = await browsingContext(browser, { browsingContextId: await browser.getWindowHandle() });
  await context.navigate(SITE, 'complete');
  logged = (await entry).text;
  assert.equal(logged, 'hello from the page');
  title = await browser.getTitle();
  await log.close();
} finally {
  await browser.quit();
}
console.log(JSON.stringify({ session, title, logged }));
