/** Composables for Vue 3.3 and newer (docs/front-ends.md). */

import {
  getCurrentInstance,
  inject,
  onMounted,
  onScopeDispose,
  provide,
  shallowReadonly,
  shallowRef,
  toValue,
  watch,
} from "vue";
import { asFeed, asJob, isSame, jobTopic, nameOf, sharedBy, startedId } from "./shared.js";

/** @typedef {import("./shared.js").Shared} Shared */

const KEY = Symbol.for("semantik-realtime");

/** @type {typeof import("./vue.js").provideRealtime} */
export function provideRealtime(connection, app) {
  const shared = sharedBy(connection);
  if (app) app.provide(KEY, shared);
  else provide(KEY, shared);
}

/** @type {typeof import("./vue.js").useRealtime} */
export function useRealtime() {
  const shared = injected();
  return () => shared.connection;
}

/** @type {typeof import("./vue.js").useConnection} */
export function useConnection() {
  const shared = injected();
  const state = shallowRef(shared.state);
  inBrowser(() => {
    const stop = shared.onState(() => (state.value = shared.state));
    state.value = shared.state;
    return stop;
  });
  return shallowReadonly(state);
}

/**
 * @param {any} id
 * @param {any} [options]
 * @returns {any}
 */
export function useJob(id, options) {
  return useTopic(() => jobTopic(toValue(id)), asJob, options);
}

/**
 * @param {any} feed
 * @param {any} [options]
 * @returns {any}
 */
export function useJobs(feed, options) {
  return useTopic(() => nameOf(toValue(feed)), asFeed, options);
}

/**
 * @param {(...args: any[]) => any} start
 * @param {any} [options] those of `useJob`
 * @returns {any}
 */
export function useSubmit(start, options) {
  const id = shallowRef(/** @type {string | null} */ (null));
  const pending = shallowRef(false);
  const error = shallowRef(/** @type {unknown} */ (null));
  /** The newest call: an older one that answers later changes nothing. */
  let newest = 0;
  const set = (
    /** @type {string | null} */ newId,
    /** @type {boolean} */ isPending,
    /** @type {unknown} */ newError,
  ) => {
    id.value = newId;
    pending.value = isPending;
    error.value = newError;
  };
  const submit = async (/** @type {any[]} */ ...args) => {
    const call = ++newest;
    set(null, true, null);
    try {
      const started = startedId(await start(...args));
      if (call === newest) set(started, false, null);
      return started;
    } catch (failure) {
      if (call === newest) set(null, false, failure);
      return null;
    }
  };
  const reset = () => {
    newest++;
    set(null, false, null);
  };
  return { submit, reset, id, pending, error, job: useJob(id, options) };
}

/**
 * @param {() => string | null} topicOf
 * @param {(snapshot: any) => any} shape
 * @param {any} [options]
 */
function useTopic(topicOf, shape, options = {}) {
  const { history = 0, select = identity, isEqual = isSame, onEvent, onGap } = options;
  const shared = injected();
  const selected = () => select(shape(shared.peek(topicOf(), history)));
  const value = shallowRef(selected());
  const update = () => {
    const next = selected();
    // While it shows the same, nothing that uses it is painted.
    if (!isEqual(value.value, next)) value.value = next;
  };
  inBrowser(() =>
    watch(
      topicOf,
      (topic, _, onCleanup) => {
        if (topic !== null) {
          onCleanup(shared.watch(topic, history).add({ onChange: update, onEvent, onGap }));
        }
        update();
      },
      { immediate: true },
    ),
  );
  return shallowReadonly(value);
}

/** @returns {Shared} */
function injected() {
  return (getCurrentInstance() && inject(KEY, null)) || sharedBy(null);
}

/**
 * Run `start` once the component is mounted, or at once outside of components; never on a server.
 *
 * @param {() => () => void} start returns what ends it
 */
function inBrowser(start) {
  if (globalThis.document === undefined) return;
  /** @type {(() => void) | null} */
  let stop = null;
  let isOver = false;
  const run = () => {
    if (!isOver) stop = start();
  };
  onScopeDispose(() => {
    isOver = true;
    stop?.();
  });
  if (getCurrentInstance()) onMounted(run);
  else run();
}

/** @param {any} value */
function identity(value) {
  return value;
}
