/** An application that has registered its types. It is compiled, not run. */

import { connect, type Realtime } from "semantik-realtime";
import { RealtimeProvider, useConnection, useJob, useJobs } from "semantik-realtime/react";
import { useRealtime, useSubmit, type Job } from "semantik-realtime/react";
import * as vue from "semantik-realtime/vue";

interface Events {
  file_done: { file: string; bytes: number };
  note: { text: string };
}

declare module "semantik-realtime" {
  interface Register {
    events: Events;
    fields: { failed_files: number };
  }
}

const live = (): Realtime => connect({ url: "https://elsewhere.example/realtime/ws" });
export const tree = RealtimeProvider({ connection: live, children: null });

export function Component(id: string | null): number | undefined {
  const whole = useJob(id, {
    history: 100,
    suspense: true,
    onEvent(event, { replayed }) {
      if (event.type === "file_done") console.log(event.data.bytes.toFixed(), replayed);
      if (event.type === "note") console.log(event.data.text.trim());
      // @ts-expect-error No event of the application or the package has this type.
      if (event.type === "nothing") console.log();
      if (event.type === "job_failed") console.log(event.state?.error?.message);
    },
    onGap: ({ reason }) => console.log(reason),
  });
  const failed: number | undefined = whole.state?.fields?.failed_files;
  // @ts-expect-error The application has no such field.
  console.log(whole.state?.fields?.others);
  const status: string | null = useJob(id, { select: (job) => job.status });
  const own = useJob(id, { select: (job: Job<{ mine: string }>) => job.state?.fields?.mine });
  const text: string | undefined = own;
  const ids: string[] = useJobs("user:7", { select: ({ jobs }) => [...jobs.keys()] });
  const { submit, job, pending, error, reset } = useSubmit(
    async (folder: string) => ({ job_id: folder }),
  );
  void submit("docs").then((started: string | null) => console.log(started));
  // @ts-expect-error The start takes a text.
  void submit(1);
  const share = useSubmit((folder: string) => folder, { select: ({ state }) => state?.progress });
  void useRealtime()().cancel("job:1");
  console.log(status, text, ids, job.loading, pending, error, reset, share.job?.current);
  console.log(useConnection().state === "live");
  return failed;
}

export function setup(id: () => string | null): void {
  vue.provideRealtime(live);
  const job = vue.useJob(id, { onEvent: (event) => event.type === "note" && event.data.text });
  const fields: number | undefined = job.value.state?.fields?.failed_files;
  const jobs: number = vue.useJobs("user:7", { select: (feed) => feed.jobs.size }).value;
  const { submit, job: started } = vue.useSubmit((name: string) => name);
  void submit("docs");
  console.log(fields, jobs, started.value.status, vue.useConnection().value.state);
  void vue.useRealtime()().retry("job:1");
}
