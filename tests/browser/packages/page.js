/** The same page as page.jsx, for Vue. */

import { useConnection, useJob, useJobs, useSubmit } from "semantik-realtime/vue";
import { createApp, h } from "vue";

const paints = {};
const events = [];
Object.assign(globalThis, { paints, events });

const output = (id, text) => h("output", { id }, text);

const Progress = {
  setup() {
    const current = useJob("1", {
      select: ({ state }) => state?.progress?.current ?? null,
      onEvent: (event) => events.push(event.type),
    });
    return () => output("current", String(current.value));
  },
};

const Status = {
  setup() {
    const shown = useJob("1", { select: (job) => [job.status, job.provisional] });
    return () => {
      paints.status = (paints.status ?? 0) + 1;
      return output("status", shown.value.join(" "));
    };
  },
};

const Started = {
  setup() {
    const { submit, error, pending, job } = useSubmit(async (path) => {
      const answer = await fetch(path, { method: "POST" });
      if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
      return answer.json();
    });
    const button = (id, path) =>
      h("button", { id, disabled: pending.value, onClick: () => submit(path) });
    return () => [
      button("start", "/start/2"),
      button("fail", "/nothing"),
      output("started", `${job.value.id} ${job.value.status} ${error.value?.message ?? null}`),
    ];
  },
};

const Page = {
  setup() {
    const connection = useConnection();
    const ids = useJobs("user:dev", { select: ({ jobs }) => [...jobs.keys()].sort() });
    return () => [
      output("connection", connection.value.state),
      output("ids", ids.value.join()),
      h(Progress),
      h(Status),
      h(Started),
    ];
  },
};

createApp(Page).mount("#root");
