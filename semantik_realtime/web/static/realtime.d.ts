/** Live job updates in the browser, over a WebSocket (docs/protocol.md, version 1). */

/**
 * Connect, and stay connected while something that is watched can change, until `close()`, or until
 * the server refuses the connection for good. Some seconds after the end of every job that it
 * watches, a client gives its connection back (`idle`). It reads again when the page is shown or
 * focused, when `watch` is called, and while the page is visible after 1, 2, 4, 8 and then every 15
 * minutes: so it shows a new attempt of a job too.
 */
export function connect(options?: ConnectOptions): Realtime;

/**
 * Return how far a workflow is, from the states of its topic. A pure function:
 * `summarize(view.states, id)` in `onChange`, and again with a timer for the time left.
 *
 * @param job the plain id of the workflow
 * @param nowMs milliseconds since 1970. Default: now.
 */
export function summarize(states: ReadonlyMap<string, State>, job: string, nowMs?: number): Summary;

/** The counts of members add up to `total`; a member that ran twice counts once. */
export interface Summary {
  total: number;
  done: number;
  failed: number;
  cancelled: number;
  lost: number;
  /** They will not run, because a member before them did not succeed. */
  skipped: number;
  running: number;
  /** Not published, or queued. */
  waiting: number;
  /** Of all members; each has the weight 1, unless it was submitted with another. */
  weight: number;
  /** Of the members that have ended, the skipped ones included. */
  ended_weight: number;
  /** What is done of the members that run: of each the share that its progress states. */
  running_weight: number;
  /** Weight a second since the start, with the running ones; null: nothing to tell it by. */
  rate: number | null;
  /** Null: not known, or the workflow has ended. */
  seconds_left: number | null;
  /** The first 20 members that did not succeed. */
  failures: Failure[];
}

export interface Failure {
  /** The member's key in the topic: the id of its task. */
  key: string;
  /** Where it is in the workflow: `step 2/3, group 7/40`. Empty if it was not submitted with it. */
  at: string;
  /** The name of the task. */
  name: string;
  status: "failed" | "cancelled" | "lost";
  error: State["error"];
}

export interface ConnectOptions {
  /**
   * The server's WebSocket; absolute, or relative to the page. `http` is replaced by `ws`.
   * Default: `ws` beside the folder `static` from which the server has served this module, under
   * any prefix: `/api/realtime/static/realtime.js` leads to `/api/realtime/ws`. For a copy that
   * another server or a bundler serves: `/realtime/ws`.
   */
  url?: string;
  /**
   * Returns the credential, which is sent in the first frame, a token for one topic as a
   * subprotocol, and neither in the URL. Called before
   * each connection; `expired` is true if the server closed the last one because its credential had
   * expired: return a new credential, not a cached one. Without a credential (nothing or an empty
   * text) the server uses the cookie, or refuses at once. If it throws, the client retries as after a broken network.
   */
  token?: (why: { expired: boolean }) => Token | Promise<Token>;
  /**
   * Keeps cursors and states over a reload, so that the stream continues from there; at most 1 MiB.
   * A saved state is shown only after the server has allowed the topic again. Null: save nothing.
   * Default: `sessionStorage`, if there is one.
   */
  storage?: Storage | null;
  /** The class of the sockets. Default: `WebSocket` of the browser. */
  WebSocket?: typeof WebSocket;
}

/**
 * What the application declares of itself, for the hooks:
 *
 *     declare module "semantik-realtime" {
 *       interface Register { events: Events; fields: { failed_files: number } }
 *     }
 */
export interface Register {}

export type Token = string | null | undefined;

export interface Realtime {
  /**
   * Follow a topic: its name, or its kind and a plain id, `job:import:42`. In `view.states` the key
   * of a job is its plain id. All watchers of a topic share one subscription. A later watcher gets
   * the current view in a microtask, and the events from then on. If the client is `idle` it
   * connects: call it after the page has started a job that had ended once more.
   *
   * @throws TypeError if the name is not a topic name.
   * @throws RangeError if `history` is not an integer from 0 to 1000.
   * @throws Error after `close()`.
   */
  watch(topic: string, options?: WatchOptions): Subscription;
  /**
   * Ask the server to cancel a job, by its topic: `job:42`. `cancelled`: it was waiting, and has
   * ended. `cancelling`: its task still runs, and the view shows `cancelling` until its end, which
   * is another one if the task completes all the same.
   *
   * The promise rejects with a `CommandError`, a `TypeError` if it is not the topic of a job, or the error
   * of `fetch` if there is no network.
   */
  cancel(job: string): Promise<CancelAnswer>;
  /**
   * Ask the server to start a job that has ended once more. Watch `topic` of the answer: another
   * job, or the same one, whose views then go on with the next attempt. Rejects as `cancel`.
   */
  retry(job: string): Promise<RetryAnswer>;
  /** Call `listener` now and after each change of state; returns a function that stops this. */
  onConnection(listener: ConnectionListener): () => void;
  /** The state of the connection, not of a job. */
  readonly connection: ConnectionState;
  /** End everything. The connection listeners get `closed`; no other callback runs afterwards. */
  close(): void;
}

export interface CancelAnswer {
  topic: string;
  status: "cancelled" | "cancelling";
}

export interface RetryAnswer {
  /** The id of the job that runs now. */
  job: string;
  topic: string;
}

export interface CommandError extends Error {
  /**
   * `not_found`, `forbidden`, `ended` (nothing to cancel), `not_ended` (nothing to start again),
   * `not_implemented` (the server cannot do it), `busy`, or another code of the server.
   */
  code: string;
  /** Of HTTP. 503: try again later; the job may be cancelled all the same. */
  status: number;
}

export interface WatchOptions {
  /**
   * The most events of history to get with a snapshot, 0 to 1000. A resumed stream, also after a
   * reload, has no snapshot and so no history: use `storage: null` if each page needs the history.
   * The largest value of the watchers that a topic has when it is subscribed counts. Default: 0.
   */
  history?: number;
  /** Called with the newest view, at most once per animation frame. */
  onChange?: (view: View) => void;
  /**
   * Called with each event once, in the order of the log. `replayed` is true for the history of a
   * snapshot, which the view already includes. After a failover that rewrote the log only those of
   * its events follow that are new to this page, with offsets that were used before.
   */
  onEvent?: (event: RealtimeEvent, how: { replayed: boolean }) => void;
  /**
   * Called where `onEvent` does not get events that the view includes. `onEvent` goes on after the
   * gap: with the newest events that the server sent in its place, if there are any.
   */
  onGap?: (gap: Gap) => void;
  /**
   * The topic is not yours, or does not exist: the subscription has ended. So it has if the server
   * refuses the connection for good. With the code `too_many_topics` it has not: the server allows no more topics, and the topics watched first are
   * subscribed. This one is subscribed as soon as one of those is no longer watched.
   */
  onDenied?: (info: DeniedInfo) => void;
  /** The topic was deleted: the subscription has ended. */
  onGone?: () => void;
}

export interface Gap {
  /**
   * - `conflated`: this page read so slowly that the server left out events that later ones replace
   * - `trimmed`, `too_far`: the page was away for so long that it got the states in their place
   * - `diverged`, `ahead`, `epoch`: the log that the page knows is lost, and another one goes on:
   *   events that the page got may never have happened
   * - `recalled`: the states are the host's record
   */
  reason: "conflated" | Exclude<SnapshotReason, "new">;
  /** How many events; null: not known, because the log is another one. */
  events: number | null;
}

export interface Subscription {
  readonly topic: string;
  /** Stop; no callback runs afterwards. The last one of a topic also unsubscribes at the server. */
  close(): void;
}

/** What the client knows of a topic. Immutable: each change creates a new view. */
export interface View {
  readonly topic: string;
  /** The state to show for each key, of the job and of its children, with `overlay` applied. */
  readonly states: ReadonlyMap<string, State>;
  /**
   * Those of `states` that are not from the log but from the host's record. They arrive while the
   * backend is away and stay until the log has caught up with them, key by key.
   */
  readonly overlay: ReadonlyMap<string, State>;
  /** Position in the topic's log; 0 for an empty log and for the host's record. */
  readonly offset: number;
  /** Opaque. Null: the states are the host's record. */
  readonly cursor: string | null;
  /** Why the last snapshot was sent; null if there was none since the page was loaded. */
  readonly reason: SnapshotReason | null;
  /** How many events the server has left out because this page read slowly (`onGap`). */
  readonly conflated: number;
  /**
   * True while the view may be behind the job: not connected, backend away, a gap not yet closed,
   * or a state of at least one key that is from the host's record or is no longer in the log. While
   * the client is `idle` the end of a job is not provisional.
   */
  readonly provisional: boolean;
}

export type SnapshotReason =
  | "new"
  | "trimmed"
  | "epoch"
  | "diverged"
  | "ahead"
  | "too_far"
  | "recalled";

/** The whole state of a key. A job has these members; other keys have those of the application. */
export interface State {
  status?: JobStatus;
  /** 1 for the first execution; 0 while queued. */
  attempt?: number;
  /** `total` is null if it is unknown. */
  progress?: {
    current: number;
    total: number | null;
    unit?: string;
    /** Units a second over the last ten seconds, as of the event; only while the job runs. */
    rate?: number;
    /** Bars of the loops inside this one, outermost first; only while they run. */
    inner?: { current: number; total: number | null; unit?: string; message?: string }[];
  } | null;
  /** One line for people. */
  message?: string | null;
  /** Members set by the application. */
  fields?: Record<string, unknown>;
  error?: { type: string; message: string } | null;
  /** The name of the task. */
  name?: string;
  /** RFC 3339, as are the two below. */
  queued_at?: string;
  started_at?: string;
  ended_at?: string;
  /** RFC 3339: before which no worker begins it. */
  eta?: string;
  /** Names the process that runs the attempt, or ran it. */
  worker?: string;
  [member: string]: unknown;
}

export type JobStatus =
  | "queued"
  | "running"
  | "retrying"
  | "cancelling"
  | "completed"
  | "failed"
  | "cancelled"
  | "lost";

export interface RealtimeEvent {
  /** Position in the topic's log, growing. */
  offset: number;
  /** `job_started`, `job_progress`, … or a type of the application. */
  type: string;
  /** When the event was emitted: RFC 3339, UTC, milliseconds. */
  time: string;
  /** The job or child whose state the event contains. */
  key: string;
  /** The whole state after the event; absent: unchanged; null: the key was removed. */
  state?: State | null;
  /** Data of the event itself. */
  data?: Record<string, unknown>;
  /** True on the last event of an attempt. */
  terminal?: boolean;
  [member: string]: unknown;
}

/**
 * - `connecting`: the first connection is not open yet
 * - `idle`: nothing that is watched can change: there is no connection, and none is needed
 * - `live`: connected, and the backend answers
 * - `degraded`: connected, but the backend is away since `info.since`; all views are provisional
 * - `reconnecting`: retries without end, and at once when the network or the page comes back
 * - `denied`: the server refuses for good; `info.code` is the reason
 * - `closed`: after `close()`
 */
export type ConnectionState =
  | "connecting"
  | "live"
  | "idle"
  | "reconnecting"
  | "degraded"
  | "denied"
  | "closed";

export interface ConnectionInfo {
  /**
   * The close code that caused the state, if there was one; 1006 is a broken network. With 4429 the
   * server has no place for the client, which then tries again after 15 to 30 s.
   */
  code?: number;
  /** For logs. */
  reason?: string;
  /** When the backend went away, RFC 3339. */
  since?: string;
}

export type ConnectionListener = (state: ConnectionState, info: ConnectionInfo) => void;

export interface DeniedInfo {
  topic: string;
  /**
   * `forbidden`, `too_many_topics`, or another code of the server. If the connection is refused:
   * `unauthenticated`, `expired`, `forbidden`, `too_many_frames`, `bad_frame` or `too_big`.
   */
  code: string;
  /** For logs. */
  message: string;
}
