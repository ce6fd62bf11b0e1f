// Opens the page of `infgen-rt serve` in a headless Chromium, for tests/rt/test_serve.py:
//
//     node test/tiles.mjs BROWSER ADDRESS SCREENSHOT.png [offline]
//
// OpenSeadragon comes from this package's own dependencies, in place of the address that the page names. With `offline`
// it does not come at all. Prints what the page says, and the addresses that it asked for outside of the server.
import { chromium } from "playwright-core";

const [executablePath, address, screenshot, offline] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
try {
  const page = await browser.newPage({ viewport: { width: 960, height: 640 } });
  const outside = [];
  await page.route(
    (url) => !url.href.startsWith(address),
    (route) => {
      const { pathname } = new URL(route.request().url());
      outside.push(route.request().url());
      const path = `node_modules/openseadragon${pathname.slice(pathname.indexOf("/build/"))}`;
      return offline ? route.abort() : route.fulfill({ path, headers: { "Access-Control-Allow-Origin": "*" } });
    },
  );
  await page.goto(address);
  if (!offline) await page.getByRole("status").getByText("What is seen is complete.").waitFor({ timeout: 300_000 });
  await page.screenshot({ path: screenshot });
  const [state, problem] = await Promise.all(["#state", "#problem"].map((id) => page.locator(id).textContent()));
  console.log(JSON.stringify({ state, problem, outside }));
} finally {
  await browser.close();
}
