import type { App, MaybeRefOrGetter, Ref } from "vue";
import type { ConnectionSnapshot, ConnectionSource, Events, Feed, Fields } from "./hooks.js";
import type { HookOptions, Job, Selecting, Started } from "./hooks.js";
import type { Realtime } from "./realtime.js";

export type * from "./hooks.js";

/**
 * Give the components below this one, or all of `app`, their connection. Without it they share one
 * with the default options of `connect`.
 */
export function provideRealtime(connection: ConnectionSource, app?: App): void;

/** A function that returns the client, for `cancel` and `retry`. Call it in event handlers. */
export function useRealtime(): () => Realtime;

/** The state of the connection, and why it changed last. */
export function useConnection(): Readonly<Ref<ConnectionSnapshot>>;

/**
 * Follow a job. Components that watch the same job share one subscription.
 *
 * @param id as the application has it; null or undefined: nothing yet
 */
export function useJob<F = Fields, E = Events>(
  id: MaybeRefOrGetter<string | null | undefined>,
  options?: HookOptions<E>,
): Readonly<Ref<Job<F, E>>>;
export function useJob<T, F = Fields, E = Events>(
  id: MaybeRefOrGetter<string | null | undefined>,
  options: HookOptions<E> & Selecting<Job<F, E>, T>,
): Readonly<Ref<T>>;

/**
 * Follow a feed of many jobs.
 *
 * @param feed its topic: `user:7`; null or undefined: nothing yet
 */
export function useJobs<F = Fields, E = Events>(
  feed: MaybeRefOrGetter<string | null | undefined>,
  options?: HookOptions<E>,
): Readonly<Ref<Feed<F, E>>>;
export function useJobs<T, F = Fields, E = Events>(
  feed: MaybeRefOrGetter<string | null | undefined>,
  options: HookOptions<E> & Selecting<Feed<F, E>, T>,
): Readonly<Ref<T>>;

export interface Submission<A extends unknown[], J> {
  /** Start a job. Resolves to its id, or to null if the start failed, which `error` then says. */
  readonly submit: (...args: A) => Promise<string | null>;
  /** Forget the job and the error. */
  readonly reset: () => void;
  /** Of the newest job that was started; null before. */
  readonly id: Readonly<Ref<string | null>>;
  /** The start has not answered yet. */
  readonly pending: Readonly<Ref<boolean>>;
  /** What the start threw; null: nothing. */
  readonly error: Readonly<Ref<unknown>>;
  /** As `useJob(id)` returns it. */
  readonly job: Readonly<Ref<J>>;
}

/**
 * Start a job through a route of the host's, and follow it.
 *
 * @param start calls the route, and returns the job's id, or an object that has it
 */
export function useSubmit<A extends unknown[], F = Fields, E = Events>(
  start: (...args: A) => Started | Promise<Started>,
  options?: HookOptions<E>,
): Submission<A, Job<F, E>>;
export function useSubmit<A extends unknown[], T, F = Fields, E = Events>(
  start: (...args: A) => Started | Promise<Started>,
  options: HookOptions<E> & Selecting<Job<F, E>, T>,
): Submission<A, T>;
