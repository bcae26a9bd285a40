import assert from "node:assert/strict";
import { afterEach, test } from "node:test";

import { socketAddress } from "../../semantik_realtime/web/static/address.js";

afterEach(() => delete globalThis.location);

function addressOf(url, module, page = "https://page.example/app/jobs?tab=1#x") {
  globalThis.location = new URL(page);
  return socketAddress(url, module);
}

test("the server's WebSocket is beside the folder that the client was loaded from", () => {
  const expected = {
    "https://page.example/realtime/static/address.js": "wss://page.example/realtime/ws",
    "http://localhost:8000/realtime/static/address.js": "ws://localhost:8000/realtime/ws",
    // include_router(prefix="/api"), a mounted application, a path that a proxy removes.
    "https://page.example/api/realtime/static/address.js": "wss://page.example/api/realtime/ws",
    "https://page.example/a/b/live/static/address.js?v=3#x": "wss://page.example/a/b/live/ws",
    // The page is of another server.
    "https://api.example:8443/realtime/static/address.js": "wss://api.example:8443/realtime/ws",
  };
  for (const [module, address] of Object.entries(expected)) {
    assert.equal(addressOf(undefined, module), address);
  }
});

test("a copy that the server has not served uses /realtime/ws of the page", () => {
  const modules = [
    "https://page.example/assets/index-4f3a.js",
    "https://page.example/static/app.js",
    "https://page.example/static/js/address.js",
    "https://page.example/node_modules/semantik-realtime/static/address.js",
    "https://page.example/@fs/venv/semantik_realtime/web/static/address.js?t=1",
    "file:///srv/semantik_realtime/web/static/address.js",
    "blob:https://page.example/4f3a",
  ];
  for (const module of modules) {
    assert.equal(addressOf(undefined, module), "wss://page.example/realtime/ws", module);
  }
});

test("an explicit URL wins", () => {
  const module = "https://page.example/api/realtime/static/address.js";
  const expected = {
    "/live/ws": "wss://page.example/live/ws",
    "ws?x=1": "wss://page.example/app/ws?x=1",
    "ws://127.0.0.1:8000/realtime/ws": "ws://127.0.0.1:8000/realtime/ws",
    "http://other.example/ws": "ws://other.example/ws",
  };
  for (const [url, address] of Object.entries(expected)) {
    assert.equal(addressOf(url, module), address);
  }
});
