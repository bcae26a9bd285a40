/**
 * Reads the frames of a file with the JavaScript client, as a browser that watches one topic does.
 *
 * Arguments: the file, the topic, the id of the workflow, how many members it has. Prints what the
 * client had in memory as JSON. Run with --expose-gc.
 */

import { createReadStream } from "node:fs";
import { createInterface } from "node:readline";

import { connect, summarize } from "../semantik_realtime/web/static/realtime.js";

const [file, topic, job, total] = process.argv.slice(2);

let socket;
class Socket {
  constructor() {
    socket = this;
  }
  send() {}
  close() {}
}

const used = () => {
  globalThis.gc();
  return process.memoryUsage().heapUsed;
};

const live = connect({ url: "ws://127.0.0.1:9/", storage: null, WebSocket: Socket });
let view;
let keys = 0;
let frames = 0;
live.watch(topic, { onChange: (changed) => (view = changed) });
await new Promise(setImmediate);
socket.onopen({});
const before = used();
for await (const line of createInterface({ input: createReadStream(file) })) {
  socket.onmessage({ data: line });
  frames += 1;
  // A browser paints once a frame of the screen.
  if (frames % 10 === 0) await new Promise((resolve) => setTimeout(resolve, 17));
  keys = Math.max(keys, view?.states.size ?? 0);
}
await new Promise((resolve) => setTimeout(resolve, 50));
const bytes = used() - before;
const { done, failed } = summarize(view.states, job);
console.log(JSON.stringify({ keys, bytes, done, failed, total: Number(total) }));
live.close();
