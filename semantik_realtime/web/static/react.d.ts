import type { ReactElement, ReactNode } from "react";
import type { ConnectionSnapshot, ConnectionSource, Events, Feed, Fields } from "./hooks.js";
import type { HookOptions, Job, Selecting, Started } from "./hooks.js";
import type { Realtime } from "./realtime.js";

export type * from "./hooks.js";

/** `suspense`: the component waits in `<Suspense>` until there is something to show. */
export interface Options<E = Events> extends HookOptions<E> {
  suspense?: boolean;
}

/**
 * The connection of the hooks inside it. Without a provider they share one with the default options
 * of `connect`. A function is called once for each provider that is mounted, in browsers only; the
 * connection stays open when the provider is unmounted, and rests while nothing is watched.
 */
export function RealtimeProvider(props: {
  connection: ConnectionSource;
  children?: ReactNode;
}): ReactElement;

/** A function that returns the client, for `cancel` and `retry`. Call it in event handlers. */
export function useRealtime(): () => Realtime;

/** The state of the connection, and why it changed last. */
export function useConnection(): ConnectionSnapshot;

/**
 * Follow a job. Components that watch the same job share one subscription.
 *
 * @param id as the application has it; null or undefined: nothing yet
 * @throws TypeError if no topic can have that id
 */
export function useJob<F = Fields, E = Events>(
  id: string | null | undefined,
  options?: Options<E>,
): Job<F, E>;
export function useJob<T, F = Fields, E = Events>(
  id: string | null | undefined,
  options: Options<E> & Selecting<Job<F, E>, T>,
): T;

/**
 * Follow a feed of many jobs.
 *
 * @param feed its topic: `user:7`; null or undefined: nothing yet
 * @throws TypeError if it is not a topic
 */
export function useJobs<F = Fields, E = Events>(
  feed: string | null | undefined,
  options?: Options<E>,
): Feed<F, E>;
export function useJobs<T, F = Fields, E = Events>(
  feed: string | null | undefined,
  options: Options<E> & Selecting<Feed<F, E>, T>,
): T;

export interface Submission<A extends unknown[], J> {
  /** Start a job. Resolves to its id, or to null if the start failed, which `error` then says. */
  readonly submit: (...args: A) => Promise<string | null>;
  /** Forget the job and the error. */
  readonly reset: () => void;
  /** Of the newest job that was started; null before. */
  readonly id: string | null;
  /** The start has not answered yet. */
  readonly pending: boolean;
  /** What the start threw; null: nothing. */
  readonly error: unknown;
  /** As `useJob(id)` returns it. */
  readonly job: J;
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
