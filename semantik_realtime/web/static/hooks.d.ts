/** What the hooks for React and the composables for Vue have in common. */

import type { ConnectionInfo, ConnectionState, DeniedInfo, Gap, Realtime } from "./realtime.js";
import type { Register, RealtimeEvent, State, View } from "./realtime.js";

/** The members that the application sets with `job.set`; narrower once they are registered. */
export type Fields = Register extends { fields: infer F } ? F : Record<string, unknown>;

/** The data of the application's events by their type; narrower once they are registered. */
export type Events = Register extends { events: infer E } ? E : Record<never, never>;

/** The types of events that the package itself emits. */
export type BuiltInType =
  | "job_queued"
  | "job_started"
  | "job_progress"
  | "job_retrying"
  | "job_cancelling"
  | "job_completed"
  | "job_failed"
  | "job_cancelled"
  | "job_lost";

/**
 * An event of the application. With types that are registered it is a union: `event.type` decides
 * which `event.data` it has. Types of which none is registered are `RealtimeEvent`.
 */
export type AppEvent<E = Events> = [keyof E] extends [never]
  ? RealtimeEvent
  :
      | { [T in keyof E & string]: RealtimeEvent & { type: T; data: E[T] } }[keyof E & string]
      | (RealtimeEvent & { type: BuiltInType });

/** The whole state of a job, with the application's own members. */
export type JobState<F = Fields> = State & { fields?: F };

/** What is known of a topic. Immutable: each change creates a new one. */
export interface Topic<E = Events> {
  /** The topic's name; null: there is none to watch. */
  readonly topic: string | null;
  /** The id in the topic's name, as the application has it. */
  readonly id: string | null;
  /** Null until the server has sent it. */
  readonly view: View | null;
  /** The newest events, the oldest first, at most `history` of them; also those that came later. */
  readonly events: readonly AppEvent<E>[];
  /** Why the server refuses the topic; null: it does not. */
  readonly denied: DeniedInfo | null;
  /** The topic was deleted. */
  readonly gone: boolean;
  /** Nothing has come yet: no view, no refusal. */
  readonly loading: boolean;
}

export interface Job<F = Fields, E = Events> extends Topic<E> {
  /** Null until it is known. */
  readonly state: JobState<F> | null;
  readonly status: NonNullable<State["status"]> | null;
  /** What is shown may be outdated, as `provisional` of a view; true until there is one. */
  readonly provisional: boolean;
}

export interface Feed<F = Fields, E = Events> extends Topic<E> {
  /** The states of the feed's jobs by their ids. An unchanged job keeps its state object. */
  readonly jobs: ReadonlyMap<string, JobState<F>>;
  /** As of a job. */
  readonly provisional: boolean;
}

export interface HookOptions<E = Events> {
  /** How many events `events` has at most, 0 to 1000. Default: 0. */
  history?: number;
  /** Called once with each event since the component is mounted; of a snapshot, if it is the first. */
  onEvent?: (event: AppEvent<E>, how: { replayed: boolean }) => void;
  /** Called where `onEvent` does not get events that the view includes. */
  onGap?: (gap: Gap) => void;
}

export interface Selecting<S, T> {
  /** The part that the component shows. It is painted only when that part changes. */
  select: (shown: S) => T;
  /**
   * Whether two selections show the same. Default: equal values, or plain objects and lists whose
   * members are equal.
   */
  isEqual?: (a: T, b: T) => boolean;
}

/** An answer of the host's route that names the job which it has started. */
export type Started =
  | string
  | number
  | { readonly job_id: string | number }
  | { readonly job: string | number }
  | { readonly id: string | number };

export interface ConnectionSnapshot {
  readonly state: ConnectionState;
  readonly info: ConnectionInfo;
}

/** A client, or a function that makes one: it is called in browsers only, when one is needed. */
export type ConnectionSource = Realtime | (() => Realtime);
