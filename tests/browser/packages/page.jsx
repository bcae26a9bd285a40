/** A page in StrictMode: one job in two components, a row of a feed, and a start. */

import { StrictMode, Suspense } from "react";
import { createRoot } from "react-dom/client";
import { useConnection, useJob, useJobs, useSubmit } from "semantik-realtime/react";

const paints = {};
const events = [];
Object.assign(globalThis, { paints, events });

const painted = (name) => (paints[name] = (paints[name] ?? 0) + 1);

function Progress() {
  const current = useJob("1", {
    select: ({ state }) => state?.progress?.current ?? null,
    onEvent: (event) => events.push(event.type),
    suspense: true,
  });
  return <output id="current">{String(current)}</output>;
}

function Status() {
  painted("status");
  const [status, provisional] = useJob("1", { select: (job) => [job.status, job.provisional] });
  return <output id="status">{`${status} ${provisional}`}</output>;
}

function Started() {
  const { submit, pending, error, job } = useSubmit(async (path) => {
    const answer = await fetch(path, { method: "POST" });
    if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
    return answer.json();
  });
  return (
    <>
      <button id="start" disabled={pending} onClick={() => submit("/start/2")} />
      <button id="fail" disabled={pending} onClick={() => submit("/nothing")} />
      <output id="started">{`${job.id} ${job.status} ${error?.message ?? null}`}</output>
    </>
  );
}

function Page() {
  const { state } = useConnection();
  const ids = useJobs("user:dev", { select: ({ jobs }) => [...jobs.keys()].sort() });
  return (
    <>
      <output id="connection">{state}</output>
      <output id="ids">{ids.join()}</output>
      <Suspense fallback={<output id="waiting" />}>
        <Progress />
      </Suspense>
      <Status />
      <Started />
    </>
  );
}

createRoot(document.getElementById("root")).render(
  <StrictMode>
    <Page />
  </StrictMode>,
);
