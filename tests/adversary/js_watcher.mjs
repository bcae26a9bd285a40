/** Watches one topic with the JavaScript client, and prints what its callbacks get, as JSON lines. */

import { connect } from "../../semantik_realtime/web/static/realtime.js";

const [url, topic, token] = process.argv.slice(2);
const print = (given) => process.stdout.write(JSON.stringify(given) + "\n");

/** A browser fires `close` also after a failed handshake; that of node 20 fires only `error`. */
class Socket extends WebSocket {
  constructor(...args) {
    super(...args);
    let isClosed = false;
    this.addEventListener("close", () => (isClosed = true));
    this.addEventListener("error", () => {
      setTimeout(() => {
        if (!isClosed) this.onclose?.({ code: 1006, reason: "" });
      }, 10);
    });
  }
}

const live = connect({ url, storage: null, token: () => token, WebSocket: Socket });
live.onConnection((connection) => print({ connection }));
live.watch(topic, {
  onEvent: (event, { replayed }) => {
    if (!replayed) print({ event });
  },
  onGap: (gap) => print({ gap }),
  onChange: ({ cursor, states }) => print({ view: { cursor, states: Object.fromEntries(states) } }),
});
// The process that started this one has ended.
process.stdin.on("end", () => process.exit());
process.stdin.resume();
