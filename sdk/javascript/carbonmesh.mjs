// The phase host of CarbonMesh for Node.js 18 and later: one file, no dependencies.
//
//     import { phase, run, Retry, Fatal } from './carbonmesh.mjs';
//     phase('shout', async (instructions, context) => ({ text: instructions.text.toUpperCase() }));
//     run();
//
// A node starts such a file (`carbonmesh phase FILE.mjs shout`, or `[hosts.NAME] file = "FILE.mjs"`) and
// speaks with it in frames over its standard streams: docs/phase-hosts.md has them.

import { Console } from 'node:console';
import { writeSync } from 'node:fs';

const PROTOCOL = 1;
const LEVELS = { debug: 'debug', info: 'info', warn: 'warning', warning: 'warning', error: 'error' };
const UNITS_MS = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 };

/** How long attempts may go on once the node says that it is over. It waits for two seconds. */
const END_GRACE_MS = 1000;

/** The longest text that is sent of a message or a stack. */
const MOST_TEXT = 64 << 10;

/** The longest delay, in milliseconds: a thousand years. */
const LONGEST_MS = 1000 * 366 * 86_400_000;

const phases = new Map();
const running = new Map();
let maxFrame = 16 << 20;

// What handlers print belongs to the log; frames have standard output to themselves. This is done as
// soon as the file is loaded, since the rest of the handlers' file runs before `run`.
globalThis.console = new Console(process.stderr, process.stderr);
process.stdout.write = process.stderr.write.bind(process.stderr);

/**
 * The attempt has failed, and another may do better: not before `after`, if given, which is a number of
 * seconds or a text such as '30s' or '1h 30m'.
 */
export class Retry extends Error {
  constructor(message, after) {
    super(message);
    this.name = 'Retry';
    this.after = after === undefined ? undefined : duration(after);
  }
}

/** The attempt has failed, and no other will do better. */
export class Fatal extends Error {
  constructor(message) {
    super(message);
    this.name = 'Fatal';
  }
}

/**
 * Says what runs a phase: a function of the instructions and a context, that gives an object, or a
 * promise of one; or an async generator, whose values are items.
 */
export function phase(name, handler) {
  if (typeof name !== 'string' || name === '') {
    throw new TypeError(`a phase's name must be a text, not ${JSON.stringify(name)}`);
  }
  if (typeof handler !== 'function') {
    throw new TypeError(`phase ${name}: its handler must be a function`);
  }
  if (phases.has(name)) {
    throw new TypeError(`there are two phases named ${name}`);
  }
  phases.set(name, handler);
}

/** Serves a node until it is gone. `concurrency`: how many attempts run at the same time. */
export function run({ concurrency = 1, pipelines = [] } = {}) {
  if (!Number.isInteger(concurrency) || concurrency < 1) {
    throw new TypeError(`concurrency must be 1 or more, not ${concurrency}`);
  }
  if (phases.size === 0) throw new TypeError("there are no phases: call phase('name', handler) before run()");
  send({
    type: 'hello',
    protocol: PROTOCOL,
    sdk: 'javascript 0.1.0',
    phases: [...phases.keys()].map((name) => ({ name })),
    concurrency,
    pipelines,
  });
  process.stdin.on('end', () => end(0));
  eachLine(process.stdin, (line) => {
    const frame = JSON.parse(line);
    if (frame.type === 'run') {
      const abort = new AbortController();
      running.set(frame.id, abort);
      attempt(frame, abort.signal);
    } else if (frame.type === 'cancel') {
      running.get(frame.id)?.abort();
    } else if (frame.type === 'welcome') {
      maxFrame = frame.max_frame ?? maxFrame;
    } else if (frame.type === 'shutdown') {
      end(END_GRACE_MS);
    }
  });
}

let isEnding = false;

/** Ends the process when nothing runs any more; what runs is told to stop after `grace`. */
function end(grace) {
  if (running.size === 0) process.exit(0);
  if (isEnding) return;
  isEnding = true;
  setTimeout(() => {
    running.forEach((abort) => abort.abort());
    setTimeout(() => process.exit(0), END_GRACE_MS / 2);
  }, grace);
}

/** Lines end with a line feed alone: other separators may stand within JSON. */
function eachLine(stream, take) {
  let parts = [];
  stream.on('data', (chunk) => {
    for (let end = chunk.indexOf(10); end >= 0; end = chunk.indexOf(10)) {
      parts.push(chunk.subarray(0, end));
      take(Buffer.concat(parts).toString());
      parts = [];
      chunk = chunk.subarray(end + 1);
    }
    parts.push(chunk);
  });
}

/**
 * What a phase that gives items leaves beside them, for the phase behind what is made of these: the first
 * writes it, the second reads it. What is set is durable when the attempt's end is; what an attempt left
 * that failed is gone. A phase that is both reads its own keys before those of others; of several before
 * it, those of the later in the pipeline count. `context.sessions` has each by its step.
 */
class Session {
  #context;
  #own = new Map();

  constructor(context) {
    this.#context = context;
  }

  /** The value of a key; undefined if there is none. */
  get(key) {
    return this.#all().get(key);
  }

  has(key) {
    return this.#all().has(key);
  }

  keys() {
    return this.#all().keys();
  }

  entries() {
    return this.#all().entries();
  }

  [Symbol.iterator]() {
    return this.entries();
  }

  get size() {
    return this.#all().size;
  }

  /** Sets a key to any JSON. */
  set(key, value) {
    this.#leave(key, { value: plain(value ?? null, `session key ${key}`) });
    this.#own.set(key, value ?? null);
    return this;
  }

  /** Takes out a key that this attempt has set. Says whether it had. */
  delete(key) {
    if (!this.#own.has(key)) return false;
    this.#leave(key, {});
    return this.#own.delete(key);
  }

  #all() {
    const before = Object.values(this.#context.sessions).flatMap((left) => Object.entries(left));
    return new Map([...before, ...this.#own]);
  }

  #leave(key, value) {
    const { signal, step, givesItems } = this.#context;
    if (signal.aborted) throw new Error('the attempt was cancelled');
    if (typeof key !== 'string') throw new TypeError(`a session's keys are texts, not ${kind(key)}`);
    if (!givesItems) {
      const forEach = `for_each = ${JSON.stringify(step)}`;
      throw new Fatal(
        `step ${step} sets ${key} in its session, and no phase of the pipeline has ${forEach}, ` +
          'behind which one could read it',
      );
    }
    this.#context.send({ type: 'session', key, ...value });
  }
}

/** What one attempt knows of itself, and how it is heard. */
class Context {
  constructor(frame, signal) {
    const { id, job, pipeline, step, attempt: number, token, idempotency_key: key } = frame;
    Object.assign(this, { job, pipeline, step, attempt: number, token, idempotencyKey: key });
    this.givesItems = frame.gives_items;
    this.timeoutMs = frame.timeout_ms;
    /** The attempt's span (W3C Trace Context): what the phase traces belongs below it. */
    this.traceparent = frame.traceparent;
    /** Values and secrets that the node's operator gives to this phase. */
    this.scope = frame.scope ?? {};
    Object.defineProperty(this, 'scope', { enumerable: false });
    /** What phases left that gave the items before it, by step. */
    this.sessions = frame.sessions ?? {};
    Object.defineProperty(this, 'sessions', { enumerable: false });
    this.session = new Session(this);
    Object.defineProperty(this, 'session', { enumerable: false });
    /** Aborted when nobody wants the attempt's end any more. */
    this.signal = signal;
    this.send = (part) => send({ ...part, id });
    Object.defineProperty(this, 'send', { enumerable: false });
  }

  /** Writes a line into the node's log; the level is debug, info, warning or error. */
  log(message, level = 'info') {
    this.send({ type: 'log', level: LEVELS[level] ?? 'info', message: text(message) });
  }

  /** Shows that it lives, for phases with a heartbeat_timeout. */
  heartbeat() {
    this.send({ type: 'heartbeat' });
  }

  /** Says how far it has come: a part of 1, and what is being done. */
  progress(done, message) {
    const within = Math.max(0, Math.min(1, Number(done) || 0));
    this.send({ type: 'progress', done: within, message: message === undefined ? '' : text(message) });
  }

  /** Gives one item, where a phase behind does something for_each. */
  item(value) {
    // A generator that does not look would otherwise go on for nobody.
    if (this.signal.aborted) throw new Error('the attempt was cancelled');
    if (!this.givesItems) {
      const forEach = `for_each = ${JSON.stringify(this.step)}`;
      throw new Fatal(`step ${this.step} gives an item, and no phase of the pipeline has ${forEach}`);
    }
    this.send({ type: 'item', item: plain(value ?? null, 'an item') });
  }
}

async function attempt(frame, signal) {
  const { id } = frame;
  let line;
  try {
    const handler = phases.get(frame.phase);
    if (!handler) throw new Fatal(`phase ${frame.phase} is not in this file`);
    const context = new Context(frame, signal);
    const result = await given(handler(frame.instructions, context), context);
    if (typeof result !== 'object' || Array.isArray(result)) {
      throw new Fatal(`the handler gave ${kind(result)}: give an object`);
    }
    line = encoded({ type: 'result', id, result: plain(result, 'the result') });
  } catch (error) {
    const cancelled = { type: 'error', message: 'the attempt was cancelled', retry: true };
    line = encoded({ id, ...(signal.aborted ? cancelled : failure(error)) });
  }
  running.delete(id);
  write(line);
  if (isEnding && running.size === 0) process.exit(0);
}

async function given(value, context) {
  if (typeof value?.[Symbol.asyncIterator] === 'function') {
    for await (const item of value) context.item(item);
    return {};
  }
  // Generators alone: arrays and the like are values.
  if (typeof value?.[Symbol.iterator] === 'function' && typeof value.next === 'function') {
    for (const item of value) context.item(item);
    return {};
  }
  return (await value) ?? {};
}

/** How an attempt failed, whatever was thrown. */
function failure(error) {
  try {
    const message = text(error instanceof Error ? error.message : error);
    if (error instanceof Fatal) return { type: 'error', message, retry: false };
    if (error instanceof Retry) {
      const after = error.after === undefined ? {} : { retry_after: error.after };
      return { type: 'error', message, retry: true, ...after };
    }
    const named = error instanceof Error ? text(`${error.name}: ${message}`) : message;
    return { type: 'error', message: named, retry: true, traceback: text(error?.stack ?? '') };
  } catch {
    return { type: 'error', message: 'the handler threw what cannot be shown', retry: true };
  }
}

/** Seconds, or a text such as '30s' or '1h 30m', as nodes read it. */
function duration(value) {
  let ms = typeof value === 'number' ? value * 1000 : NaN;
  if (typeof value === 'string' && /^\s*(\d+(\.\d+)?\s*(ms|s|m|h|d)\s*)+$/.test(value)) {
    ms = 0;
    for (const [, number, unit] of value.matchAll(/(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)/g)) {
      ms += Number(number) * UNITS_MS[unit];
    }
  }
  if (!(ms >= 0 && ms <= LONGEST_MS)) {
    throw new RangeError(`${value} is no duration: give seconds, or a text such as '30s' or '1h 30m'`);
  }
  return `${Math.round(ms)}ms`;
}

function text(value) {
  return String(value).slice(0, MOST_TEXT);
}

function kind(value) {
  if (value === null) return 'null';
  return Array.isArray(value) ? 'an array' : `a ${typeof value}`;
}

/** A value as it is written. */
class Json {
  constructor(line) {
    this.line = line;
  }
}

/** The value in JSON; `what` it is says who cannot be written, if so. */
function plain(value, what) {
  let line;
  try {
    line = stringified(value);
  } catch (error) {
    throw new Fatal(`${what} is no JSON: ${error.message}`);
  }
  if (line === undefined) throw new Fatal(`${what} is no JSON: it is ${kind(value)}`);
  if (what === 'the result' && !line.startsWith('{')) {
    throw new Fatal(`the handler gave what is no object in JSON: ${text(line.slice(0, 80))}`);
  }
  if (Buffer.byteLength(line) > maxFrame - 100) {
    throw new Fatal(`${what} is too long: ${Buffer.byteLength(line)} bytes of ${maxFrame} (max_frame)`);
  }
  return new Json(line);
}

function encoded(frame) {
  const parts = Object.entries(frame).map(([key, value]) => {
    return `${JSON.stringify(key)}:${value instanceof Json ? value.line : stringified(value)}`;
  });
  return `{${parts.join(',')}}\n`;
}

/** Half a surrogate pair, as of a text that was cut, is no text for others. */
function stringified(value) {
  const line = JSON.stringify(value);
  if (!line?.includes('\\ud')) return line;
  const whole = (text) => text.replace(/[\ud800-\udfff]/gu, '\ufffd');
  return JSON.stringify(value, (_, part) => (typeof part === 'string' ? whole(part) : part));
}

function send(frame) {
  write(encoded(frame));
}

function write(line) {
  let bytes = Buffer.from(line);
  while (bytes.length > 0) {
    try {
      bytes = bytes.subarray(writeSync(1, bytes));
    } catch (error) {
      // A pipe that is full for the moment; any other error means that the node is gone.
      if (error.code !== 'EAGAIN') process.exit(0);
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1);
    }
  }
}
