/** Live job updates in the browser: the client of the native wire, version 1. */

/** Open a connection and keep it until it is closed or refused for good. */
export function connect(options?: ConnectOptions): Realtime;

export interface ConnectOptions {
  /**
   * Where the server's WebSocket is; relative to the page or absolute, `http` becomes `ws`.
   * Default: `/realtime/ws`.
   */
  url?: string;
  /**
   * Gives the credential, sent as the first frame and never in the URL. Called before each
   * connection; `expired` is true if the server has closed the last one because the credential had
   * expired, so a cached one will not do. Nothing or an empty text: the cookie does it. If it
   * throws, that counts as a failed try.
   */
  token?: (why: { expired: boolean }) => Token | Promise<Token>;
  /**
   * Where cursors and states are kept over a reload, so that the stream continues where it was;
   * null: nowhere. At most 1 MiB is used. What is kept is shown only after the server has allowed
   * the topic again. Default: `sessionStorage`, if there is one.
   */
  storage?: Storage | null;
  /** The class that makes sockets. Default: the one of the browser. */
  WebSocket?: typeof WebSocket;
}

export type Token = string | null | undefined;

export interface Realtime {
  /**
   * Follow a topic. However many watch it, it is subscribed once; who comes later gets the current
   * view at once (after the running code), and the events from then on.
   *
   * @throws TypeError if the name is not one of a topic.
   * @throws RangeError if `history` is not an integer from 0 to 1000.
   * @throws Error after `close()`.
   */
  watch(topic: string, options?: WatchOptions): Subscription;
  /** Told at once of the current state, and then of each change; returns what stops it. */
  onConnection(listener: ConnectionListener): () => void;
  /** How the link to the server is; a job's own status is in its state. */
  readonly connection: ConnectionState;
  /** End everything. No callback comes after it, but the one that tells `closed`. */
  close(): void;
}

export interface WatchOptions {
  /**
   * With a snapshot, also get up to so many of the newest events, 0 to 1000. A stream that is
   * resumed, after a reload too, has no snapshot and so no history: use `storage: null` if each
   * page needs it. Of several watchers of a topic, those decide who were there when it was
   * subscribed. Default: 0.
   */
  history?: number;
  /** The newest view, at most once an animation frame. */
  onChange?: (view: View) => void;
  /**
   * Each event once, in the order of the log. `replayed`: it is history from a snapshot, and the
   * view has it already. After a failover that rewrote the log (the view's `reason` is `diverged`,
   * `ahead` or `epoch`) the history of the new log is given whole.
   */
  onEvent?: (event: RealtimeEvent, how: { replayed: boolean }) => void;
  /**
   * Not yours, or it does not exist: the subscription has ended. With the code `too_many_topics` it
   * waits: the server allows no more topics, and those watched first have the places. It goes on by
   * itself as soon as one of them is no longer watched.
   */
  onDenied?: (info: DeniedInfo) => void;
  /** The topic was deleted: the subscription has ended. */
  onGone?: () => void;
}

export interface Subscription {
  readonly topic: string;
  /** Stop; no callback comes after it. The last one of a topic ends it on the wire. */
  close(): void;
}

/** What is known of a topic. It is never changed: a change makes a new one. */
export interface View {
  readonly topic: string;
  /** What is to be shown of each key, of the job and of its children; `overlay` is applied. */
  readonly states: ReadonlyMap<string, State>;
  /**
   * Those of `states` that are not of the log: the host's record, told while the backend is away
   * and kept for a key until the log has caught up with it.
   */
  readonly overlay: ReadonlyMap<string, State>;
  /** Position in the topic's log; 0 for an empty log and for a record that is not of the log. */
  readonly offset: number;
  /** Opaque. Null: the states are the host's own record. */
  readonly cursor: string | null;
  /** Why the last snapshot was sent; null if there was none since the page was loaded. */
  readonly reason: SnapshotReason | null;
  /**
   * True while this may be behind: no link, backend away, on the way to closing a gap, or a record
   * of the host instead of the log, be it of a single key.
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

/** The whole state of a key; a job has the members below, other keys what the application says. */
export interface State {
  status?: JobStatus;
  /** 1 for the first execution; 0 while queued. */
  attempt?: number;
  /** `total` is null when unknown. */
  progress?: { current: number; total: number | null; unit?: string } | null;
  /** One line for people. */
  message?: string | null;
  /** The application's own members. */
  fields?: Record<string, unknown>;
  error?: { type: string; message: string } | null;
  /** The name of the task. */
  name?: string;
  /** RFC 3339, as are the two below. */
  queued_at?: string;
  started_at?: string;
  ended_at?: string;
  [member: string]: unknown;
}

export type JobStatus =
  | "queued"
  | "running"
  | "retrying"
  | "completed"
  | "failed"
  | "cancelled"
  | "lost";

export interface RealtimeEvent {
  /** Position in the topic's log, growing. */
  offset: number;
  /** `job_started`, `job_progress`, … or the application's own. */
  type: string;
  /** When it was made: RFC 3339, UTC, milliseconds. */
  time: string;
  /** Whose state it carries: the job, or a child of it. */
  key: string;
  /** The whole state after the event; absent: unchanged; null: the key is gone. */
  state?: State | null;
  /** What the event itself says. */
  data?: Record<string, unknown>;
  /** True on the last event of an attempt. */
  terminal?: boolean;
  [member: string]: unknown;
}

/**
 * - `connecting`: for the first time
 * - `live`: connected, and the backend answers
 * - `degraded`: connected, but the backend is away since `info.since`; what is shown is provisional
 * - `reconnecting`: tried again without end, at once when the network or the page comes back
 * - `denied`: the server refuses for good, `info.code` says why
 * - `closed`: by `close()`
 */
export type ConnectionState =
  | "connecting"
  | "live"
  | "reconnecting"
  | "degraded"
  | "denied"
  | "closed";

export interface ConnectionInfo {
  /** The close code that led here, if one did; 1006 is the network. */
  code?: number;
  /** For logs. */
  reason?: string;
  /** Since when the backend is away, RFC 3339. */
  since?: string;
}

export type ConnectionListener = (state: ConnectionState, info: ConnectionInfo) => void;

export interface DeniedInfo {
  topic: string;
  /** `forbidden`, `too_many_topics` or another word of the server. */
  code: string;
  /** For logs. */
  message: string;
}
