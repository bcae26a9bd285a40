/**
 * The summary of a workflow, from the states of its topic (docs/workflows.md). A pure function: the
 * time is an argument. `core/summary.py` is the same in Python.
 *
 * @typedef {import("./realtime.js").Summary} Summary
 * @typedef {Map<string, Uint8Array>} Sets numbers by their giver, as bits
 */

/** Members that one giver of numbers can number. */
const MAX_MEMBERS = 100_000;
const MAX_GIVERS = 1000;
/** Failures of members that a summary names. */
const MAX_FAILURES = 20;
const OUTCOMES = ["done", "failed", "cancelled", "lost", "skipped"];
/** @type {Record<string, string>} */
const OUTCOME_OF_STATUS = {
  completed: "done",
  failed: "failed",
  cancelled: "cancelled",
  lost: "lost",
};
const RUNNING_STATUSES = ["running", "retrying", "cancelling"];
const TIME =
  /^[0-9]{4}-(0[1-9]|1[0-2])-([0-2][1-9]|[123]0|31)T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]\.[0-9]{3}Z$/;

/** @type {typeof import("./realtime.js").summarize} */
export function summarize(states, job, nowMs = Date.now()) {
  const count = new Count(states, job);
  const own = count.own;
  const numbers = { total: 0, done: 0, failed: 0, cancelled: 0, lost: 0, skipped: 0, running: 0 };
  let [weight, endedWeight, workedWeight, runningWeight] = [0, 0, 0, 0];
  const runs = weightsOf(count.flow);
  for (const giver of new Set(["", ...count.givers])) {
    const size = count.size(giver);
    numbers.total += size;
    const shares = count.shares(giver);
    let [first, at] = [0, 0];
    /** @type {[number, number][]} */
    const parts = [...(giver === "" ? runs : []), [MAX_MEMBERS, 1]];
    for (const [length, each] of parts) {
      const end = first + Math.min(length, size - first);
      for (; (shares[at]?.[0] ?? Infinity) < end; at++) runningWeight += (shares[at]?.[1] ?? 0) * each;
      let [ended, worked] = [0, 0];
      for (let number = first; number < end; number++) {
        const part = count.partOf(giver, number);
        if (!part) continue;
        numbers[part] += 1;
        if (part !== "running") ended += 1;
        if (part !== "running" && part !== "skipped") worked += 1;
      }
      // Multiplied once a run, as in Python, so that fractions have the same sum.
      weight += (end - first) * each;
      endedWeight += ended * each;
      workedWeight += worked * each;
      first = end;
    }
  }
  const { total, done, failed, cancelled, lost, skipped, running } = numbers;
  const rate = rateOf(own, workedWeight + runningWeight, nowMs);
  // Fractions may add up to a little more than the whole.
  const left = Math.max(0, weight - endedWeight - runningWeight);
  return {
    ...numbers,
    waiting: total - done - failed - cancelled - lost - skipped - running,
    weight,
    ended_weight: endedWeight,
    running_weight: runningWeight,
    rate,
    seconds_left: !rate || hasEnded(own) ? null : left / rate,
    failures: count.failures().slice(0, MAX_FAILURES),
  };
}

/** What the states of a topic say about the members of a workflow. */
class Count {
  /** @type {Map<string, Sets>} by outcome, and `running` */
  #sets = new Map([...OUTCOMES, "running"].map((name) => [name, new Map()]));
  /** @type {Map<string, number>} by giver, how many members are known to be numbered */
  #sizes = new Map();
  /** @type {Map<string, Map<number, number>>} by giver and number, what is done of one that runs */
  #shares = new Map();
  /** @type {{ giver: string, number: number, key: string, state: any }[]} */
  #members = [];

  /**
   * @param {ReadonlyMap<string, any>} states
   * @param {string} job
   */
  constructor(states, job) {
    this.own = objectOf(states.get(job));
    this.flow = objectOf(this.own.workflow);
    this.#grow("", numberOf(this.flow.total) ?? 0);
    for (const [key, state] of states) {
      this.#merge(objectOf(objectOf(state).tally));
      if (isObject(state?.member)) this.#add(key, state);
    }
    this.#members.sort(
      (a, b) => compare(a.giver, b.giver) || a.number - b.number || compare(a.key, b.key),
    );
  }

  get givers() {
    return this.#sizes.keys();
  }

  /** @param {string} giver */
  size(giver) {
    return this.#sizes.get(giver) ?? 0;
  }

  /**
   * @param {string} giver
   * @param {number} number
   * @returns {"done" | "running" | "failed" | "cancelled" | "lost" | "skipped" | null}
   */
  partOf(giver, number) {
    for (const part of /** @type {const} */ ([
      "done",
      "running",
      "failed",
      "cancelled",
      "lost",
      "skipped",
    ])) {
      if ((this.#sets.get(part)?.get(giver)?.[number >> 3] ?? 0) & (1 << (number & 7))) return part;
    }
    return null;
  }

  /**
   * @param {string} giver
   * @returns {[number, number][]} numbers of members that run, in their order, and what is done
   */
  shares(giver) {
    const found = [...(this.#shares.get(giver) ?? [])].sort(([a], [b]) => a - b);
    return found.filter(([number]) => this.partOf(giver, number) === "running");
  }

  failures() {
    return this.#members
      .filter(({ state }) => ["failed", "cancelled", "lost"].includes(state.status))
      .map(({ key, state }) => ({
        key,
        at: textOf(state.member.at),
        name: textOf(state.name),
        status: state.status,
        error: state.error ?? null,
      }));
  }

  /** @param {any} tally */
  #merge(tally) {
    for (const outcome of OUTCOMES) {
      for (const [giver, text] of Object.entries(objectOf(tally[outcome]))) {
        const { first, bytes } = decodeNumbers(text);
        this.#unite(outcome, giver, first, bytes);
      }
    }
    for (const [giver, count] of Object.entries(objectOf(tally.published))) {
      const known = numberOf(count);
      if (known !== null) this.#grow(giver, known);
    }
  }

  /**
   * @param {string} key
   * @param {any} state
   */
  #add(key, state) {
    const number = numberOf(state.member.n);
    const giver = state.member.of ?? "";
    if (number === null || number === MAX_MEMBERS || typeof giver !== "string") return;
    if (!this.#grow(giver, number + 1)) return;
    this.#members.push({ giver, number, key, state });
    const outcome = typeof state.status === "string" ? OUTCOME_OF_STATUS[state.status] : undefined;
    const bit = Uint8Array.of(1 << (number & 7));
    if (outcome) {
      this.#unite(outcome, giver, number >> 3, bit);
      if (outcome !== "done") this.#skip(giver, state.member.skips);
    } else if (RUNNING_STATUSES.includes(state.status)) {
      this.#unite("running", giver, number >> 3, bit);
      const share = shareOf(state);
      if (share > 0) {
        const shares = this.#shares.get(giver) ?? new Map();
        this.#shares.set(giver, shares.set(number, Math.max(share, shares.get(number) ?? 0)));
      }
    }
  }

  /**
   * @param {string} giver
   * @param {any} ranges
   */
  #skip(giver, ranges) {
    for (const pair of Array.isArray(ranges) ? ranges : []) {
      const [first, end] = Array.isArray(pair) && pair.length === 2 ? pair.map(numberOf) : [];
      for (let n = first ?? 0; first != null && end != null && n < end; n++) {
        this.#unite("skipped", giver, n >> 3, Uint8Array.of(1 << (n & 7)));
      }
    }
  }

  /**
   * @param {string} part
   * @param {string} giver
   * @param {number} first
   * @param {Uint8Array} bytes the set's bytes from the byte `first` on
   */
  #unite(part, giver, first, bytes) {
    let last = bytes.length - 1;
    while (last >= 0 && bytes[last] === 0) last--;
    if (last < 0) return;
    const size = 8 * (first + last) + 32 - Math.clz32(bytes[last] ?? 0);
    if (size > MAX_MEMBERS || !this.#grow(giver, size)) return;
    const set = grown(this.#sets.get(part)?.get(giver), first + last + 1);
    for (let at = 0; at <= last; at++) {
      set[first + at] = (set[first + at] ?? 0) | (bytes[at] ?? 0);
    }
    this.#sets.get(part)?.set(giver, set);
  }

  /**
   * @param {string} giver
   * @param {number} size
   * @returns {boolean} false: there are too many givers
   */
  #grow(giver, size) {
    if (!this.#sizes.has(giver) && this.#sizes.size > MAX_GIVERS) return false;
    this.#sizes.set(giver, Math.max(size, this.#sizes.get(giver) ?? 0));
    return true;
  }
}

/**
 * @param {Uint8Array | undefined} bytes
 * @param {number} length
 */
function grown(bytes, length) {
  if (bytes && bytes.length >= length) return bytes;
  const longer = new Uint8Array(2 * length);
  if (bytes) longer.set(bytes);
  return longer;
}

/** @param {unknown} text */
function decodeNumbers(text) {
  const [, first, data] = (typeof text === "string" && /^([0-9]{1,6}):(.*)$/s.exec(text)) || [];
  try {
    const bytes = Uint8Array.from(atob(data ?? ""), (character) => character.charCodeAt(0));
    return { first: Number(first ?? 0), bytes };
  } catch {
    return { first: 0, bytes: new Uint8Array() };
  }
}

/**
 * @param {any} own
 * @param {number} worked
 * @param {number} nowMs
 */
function rateOf(own, worked, nowMs) {
  const started = millisecondsOf(own.started_at);
  const end = hasEnded(own) ? millisecondsOf(own.ended_at) : nowMs;
  return worked && end > started ? (worked * 1000) / (end - started) : null;
}

/**
 * How much of a member is done, from 0 to 1; 0: it does not run, or has no total. One that waits
 * for its next attempt begins anew.
 *
 * @param {any} state
 */
function shareOf(state) {
  if (state.status !== "running" && state.status !== "cancelling") return 0;
  const { current, total } = objectOf(state.progress);
  return amountOf(total) ? Math.min(amountOf(current) / total, 1) : 0;
}

/** @param {unknown} value */
function amountOf(value) {
  return typeof value === "number" && value > 0 && value < 1e300 ? value : 0;
}

/**
 * @param {any} flow
 * @returns {[number, number][]} the length and the weight of each run of equal weights
 */
function weightsOf({ weights }) {
  const runs = Array.isArray(weights) ? weights : [];
  const isRun = (/** @type {any} */ run) =>
    Array.isArray(run) &&
    run.length === 2 &&
    numberOf(run[0]) !== null &&
    typeof run[1] === "number" &&
    run[1] >= 0;
  return runs.every(isRun) ? runs : [];
}

/** @param {unknown} text */
function millisecondsOf(text) {
  return typeof text === "string" && TIME.test(text) ? Date.parse(text) : NaN;
}

/** @param {any} own */
function hasEnded({ status }) {
  return typeof status === "string" && Object.hasOwn(OUTCOME_OF_STATUS, status);
}

/** @param {unknown} value */
function numberOf(value) {
  const isNumber = typeof value === "number" && Number.isInteger(value);
  return isNumber && value >= 0 && value <= MAX_MEMBERS ? value : null;
}

/** @param {unknown} value */
function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/**
 * @param {unknown} value
 * @returns {any}
 */
function objectOf(value) {
  return isObject(value) ? value : {};
}

/** @param {unknown} value */
function textOf(value) {
  return typeof value === "string" ? value : "";
}

/**
 * @param {string} a
 * @param {string} b
 */
function compare(a, b) {
  return a < b ? -1 : a > b ? 1 : 0;
}
