"use client";
/** Hooks for React 18 and newer (docs/front-ends.md). */

import {
  createContext,
  createElement,
  useCallback,
  useContext,
  useEffect,
  useRef,
  useState,
  useSyncExternalStore,
} from "react";
import { asFeed, asJob, emptyTopic, isSame, jobTopic, nameOf } from "./shared.js";
import { NOT_CONNECTED, sharedBy, startedId } from "./shared.js";

/** @typedef {import("./shared.js").Shared} Shared */

const Context = /* @__PURE__ */ createContext(/** @type {Shared | null} */ (null));

/** @type {typeof import("./react.js").RealtimeProvider} */
export function RealtimeProvider({ connection, children }) {
  const [made] = useState(() => (typeof connection === "function" ? sharedBy(connection) : null));
  const shared = typeof connection === "function" && made ? made : sharedBy(connection);
  return createElement(Context.Provider, { value: shared }, children);
}

/** @type {typeof import("./react.js").useRealtime} */
export function useRealtime() {
  const shared = useShared();
  return useCallback(() => shared.connection, [shared]);
}

/** @type {typeof import("./react.js").useConnection} */
export function useConnection() {
  const shared = useShared();
  const subscribe = useCallback(
    (/** @type {() => void} */ listener) => shared.onState(listener),
    [shared],
  );
  return useSyncExternalStore(
    subscribe,
    () => shared.state,
    () => NOT_CONNECTED,
  );
}

/**
 * @param {string | null | undefined} id
 * @param {any} [options]
 * @returns {any}
 */
export function useJob(id, options) {
  return useTopic(jobTopic(id), asJob, options);
}

/**
 * @param {string | null | undefined} feed
 * @param {any} [options]
 * @returns {any}
 */
export function useJobs(feed, options) {
  return useTopic(nameOf(feed), asFeed, options);
}

/**
 * @param {(...args: any[]) => any} start
 * @param {any} [options] those of `useJob`
 * @returns {any}
 */
export function useSubmit(start, options) {
  const [{ id, pending, error }, setCall] = useState(NOT_SUBMITTED);
  const latest = useLatest(start);
  /** The newest call: an older one that answers later changes nothing. */
  const newest = useRef(0);
  const submit = useCallback(
    async (/** @type {any[]} */ ...args) => {
      const call = ++newest.current;
      setCall({ id: null, pending: true, error: null });
      try {
        const id = startedId(await latest.current(...args));
        if (call === newest.current) setCall({ id, pending: false, error: null });
        return id;
      } catch (error) {
        if (call === newest.current) setCall({ id: null, pending: false, error });
        return null;
      }
    },
    [latest],
  );
  const reset = useCallback(() => {
    newest.current++;
    setCall(NOT_SUBMITTED);
  }, []);
  return { submit, reset, id, pending, error, job: useJob(id, options) };
}

/** @type {{ id: string | null, pending: boolean, error: unknown }} */
const NOT_SUBMITTED = { id: null, pending: false, error: null };

/**
 * @param {string | null} topic
 * @param {(snapshot: any) => any} shape
 * @param {any} [options]
 */
function useTopic(topic, shape, options = {}) {
  const { history = 0, select = identity, isEqual = isSame, suspense = false } = options;
  const shared = useShared();
  const callbacks = useLatest(options);
  const subscribe = useCallback(
    (/** @type {() => void} */ onChange) => {
      if (topic === null) return () => {};
      return shared.watch(topic, history).add({
        onChange,
        onEvent: (event, how) => callbacks.current.onEvent?.(event, how),
        onGap: (gap) => callbacks.current.onGap?.(gap),
      });
    },
    [shared, topic, history, callbacks],
  );
  const isBrowser = globalThis.document !== undefined;
  if (suspense && topic !== null && isBrowser && shared.peek(topic, history).loading) {
    const { ready, snapshot } = shared.watch(topic, history);
    // Thrown for React, which renders again once it is resolved.
    if (snapshot.loading) throw ready;
  }
  /** The last selection: while a new one shows the same, this component does not paint. */
  const last = useRef(/** @type {{ value: any } | null} */ (null));
  /** @type {{ snapshot: any, value: any } | null} of this call: `select` may be another */
  let memo = null;
  const selected = (/** @type {any} */ snapshot) => {
    if (memo && memo.snapshot === snapshot) return memo.value;
    const value = select(shape(snapshot));
    if (last.current === null || !isEqual(last.current.value, value)) last.current = { value };
    memo = { snapshot, value: last.current.value };
    return last.current.value;
  };
  return useSyncExternalStore(
    subscribe,
    () => selected(shared.peek(topic, history)),
    () => selected(emptyTopic(topic)),
  );
}

function useShared() {
  return useContext(Context) ?? sharedBy(null);
}

/**
 * @template T
 * @param {T} value
 */
function useLatest(value) {
  const latest = useRef(value);
  useEffect(() => void (latest.current = value));
  return latest;
}

/** @param {any} value */
function identity(value) {
  return value;
}
