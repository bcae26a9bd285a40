/**
 * An application in strict TypeScript that uses every name and member of realtime.d.ts.
 *
 * It is compiled, not run. `@ts-expect-error` marks lines that the compiler must refuse.
 */

import { connect, summarize } from "../../semantik_realtime/web/static/realtime.js";
import type {
  CancelAnswer,
  CommandError,
  ConnectionInfo,
  ConnectionListener,
  ConnectionState,
  ConnectOptions,
  DeniedInfo,
  Failure,
  Gap,
  JobStatus,
  Realtime,
  RealtimeEvent,
  Register,
  RetryAnswer,
  SnapshotReason,
  State,
  Subscription,
  Summary,
  Token,
  View,
  WatchOptions,
} from "../../semantik_realtime/web/static/realtime.js";

/** Compiles if the two types are the same. */
type Same<A, B> =
  (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : never;

/** The members of an object that may have more of them. */
type Named<T> = keyof {
  [K in keyof T as string extends K ? never : number extends K ? never : K]: true;
};

export const members: [
  Same<keyof Register, never>,
  Same<keyof Failure, "key" | "at" | "name" | "status" | "error">,
  Same<
    keyof Summary,
    | ("total" | "done" | "failed" | "cancelled" | "lost" | "skipped" | "running" | "waiting")
    | ("weight" | "ended_weight" | "running_weight" | "rate" | "seconds_left" | "failures")
  >,
  Same<keyof ConnectOptions, "url" | "token" | "storage" | "WebSocket">,
  Same<keyof Realtime, "watch" | "cancel" | "retry" | "onConnection" | "connection" | "close">,
  Same<keyof CancelAnswer, "topic" | "status">,
  Same<keyof RetryAnswer, "job" | "topic">,
  Same<keyof CommandError, keyof Error | "code" | "status">,
  Same<keyof WatchOptions, "history" | "onChange" | "onEvent" | "onGap" | "onDenied" | "onGone">,
  Same<keyof Gap, "reason" | "events">,
  Same<keyof Subscription, "topic" | "close">,
  Same<keyof ConnectionInfo, "code" | "reason" | "since">,
  Same<keyof DeniedInfo, "topic" | "code" | "message">,
  Same<
    keyof View,
    | ("topic" | "states" | "overlay" | "offset" | "cursor" | "reason")
    | ("conflated" | "provisional")
  >,
  Same<
    Named<State>,
    | ("status" | "attempt" | "progress" | "message" | "fields" | "error" | "name")
    | ("queued_at" | "started_at" | "ended_at" | "eta" | "worker")
  >,
  Same<
    Named<RealtimeEvent>,
    "offset" | "type" | "time" | "key" | "state" | "data" | "terminal"
  >,
] = [true, true, true, true, true, true, true, true, true, true, true, true, true, true, true, true];

const tokens: Token[] = ["jwt", "", null, undefined];

const options: ConnectOptions = {
  url: "/realtime/ws",
  token: async ({ expired }: { expired: boolean }) => tokens[Number(expired)],
  storage: null,
  WebSocket,
};
connect();
connect({ token: () => "jwt", storage: sessionStorage });
const live: Realtime = connect(options);

const colours: Record<ConnectionState, string> = {
  connecting: "grey",
  live: "green",
  idle: "green",
  reconnecting: "orange",
  degraded: "orange",
  denied: "red",
  closed: "grey",
};
const listener: ConnectionListener = (state: ConnectionState, info: ConnectionInfo) => {
  const code: number | undefined = info.code;
  const texts: (string | undefined)[] = [colours[state], info.reason, info.since];
  console.log(code, ...texts);
};
const stopListening: () => void = live.onConnection(listener);
const now: ConnectionState = live.connection;

const icons: Record<JobStatus, string> = {
  queued: "…",
  running: "▶",
  retrying: "↻",
  cancelling: "…",
  completed: "✓",
  failed: "✗",
  cancelled: "–",
  lost: "?",
};
function miss({ reason, events }: Gap): string {
  return `${events ?? "some"} events ${reason === "conflated" ? "left out" : "replaced"}`;
}
function paint(state: State | undefined): string[] {
  if (!state) return [];
  const { status, attempt = 0, progress, error, fields = {} } = state;
  const percent = progress?.total ? (100 * progress.current) / progress.total : null;
  const application: unknown = [state.colour, fields.failed_files];
  return [
    status ? icons[status] : "",
    state.name ?? "",
    state.message ?? "",
    error ? `${error.type}: ${error.message}` : "",
    `${attempt} ${percent} ${progress?.unit} ${application}`,
    ...[state.queued_at, state.started_at, state.ended_at].map((at) => at ?? ""),
  ];
}

const reasons: Record<SnapshotReason, string> = {
  new: "",
  trimmed: "away for long",
  epoch: "another log",
  diverged: "rewritten",
  ahead: "rewritten",
  too_far: "away for long",
  recalled: "the host's record",
};
function show(view: View): void {
  const overlay: ReadonlyMap<string, State> = view.overlay;
  for (const [key, state] of view.states) console.log(key, paint(state), overlay.has(key));
  const cursor: string | null = view.cursor;
  const why: string = view.reason === null ? "" : reasons[view.reason];
  console.log(view.topic, view.offset.toFixed(), cursor, why, view.provisional === true);
  // @ts-expect-error a view is read-only
  view.offset = 0;
  // @ts-expect-error and so are its states
  view.states.clear();
}

function note(event: RealtimeEvent, how: { replayed: boolean }): void {
  const when = new Date(event.time);
  const unknown: unknown = [event.data?.file, event.producer];
  console.log(event.offset.toFixed(), event.type.length, event.key.length, when, unknown);
  if (event.state === null) console.log("gone", how.replayed, event.terminal ?? false);
  else paint(event.state);
}

function deny({ topic, code, message }: DeniedInfo): string {
  return [topic, code, message].join();
}

async function stop(job: string): Promise<string> {
  try {
    const answer: CancelAnswer = await live.cancel(job);
    return answer.status === "cancelled" ? answer.topic : icons[answer.status];
  } catch (error) {
    const { code, status, message } = error as CommandError;
    if (code !== "ended") return `${status}: ${message}`;
    const { job: id, topic }: RetryAnswer = await live.retry(job);
    live.watch(topic);
    return id;
  }
}
void stop("job:42");

const all: WatchOptions = { history: 100, onChange: show, onEvent: note, onDenied: deny, onGap: miss };
const subscription: Subscription = live.watch("job:42", { ...all, onGone: () => {} });
live.watch(subscription.topic);
// @ts-expect-error a topic is a string
live.watch(42);
// @ts-expect-error there is no such option
live.watch("job:42", { onError: () => {} });
// @ts-expect-error the state of the connection is read-only
live.connection = now;
subscription.close();
stopListening();
live.close();

const summary: Summary = summarize(new Map<string, State>(), "42", 0);
const shown: number = summary.total + summary.done + (summary.rate ?? 0);
const failure: Failure | undefined = summary.failures[0];
const again: Summary = summarize(new Map(), "42");
export const summaries = [shown, failure?.at, again.waiting];
