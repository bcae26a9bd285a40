/** Renders on a server, which has no page, no socket and no server of ours. */

import { createElement, StrictMode } from "react";
import { renderToString } from "react-dom/server";
import * as react from "semantik-realtime/react";
import * as vue from "semantik-realtime/vue";
import { createSSRApp, h } from "vue";
import { renderToString as renderVue } from "vue/server-renderer";

const opened = [];
globalThis.WebSocket = class {
  constructor(url) {
    opened.push(url);
  }
};

const shown = ({ state }, { status, loading }, { jobs }) =>
  `${state} ${status} ${loading} ${jobs.size}`;

function Page() {
  const job = react.useJob("1", { suspense: true });
  return createElement("p", null, shown(react.useConnection(), job, react.useJobs("user:1")));
}

const VuePage = {
  setup() {
    const [connection, job, feed] = [vue.useConnection(), vue.useJob("1"), vue.useJobs("user:1")];
    return () => h("p", shown(connection.value, job.value, feed.value));
  },
};

console.log(
  JSON.stringify({
    react: renderToString(createElement(StrictMode, null, createElement(Page))),
    vue: await renderVue(createSSRApp(VuePage)),
    open: opened,
  }),
);
