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
const phases = new Map();

/** The attempt has failed, and another may do better: not before `after`, such as '30s', if given. */
export class Retry extends Error {
  constructor(message, after) {
    super(message);
    this.name = 'Retry';
    this.after = after;
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
  // What handlers print belongs to the log; frames have standard output to themselves.
  globalThis.console = new Console(process.stderr, process.stderr);
  process.stdout.write = process.stderr.write.bind(process.stderr);

  const running = new Map();
  const ended = () => process.exit(0);
  send({
    type: 'hello',
    protocol: PROTOCOL,
    sdk: 'javascript 0.1.0',
    phases: [...phases.keys()].map((name) => ({ name })),
    concurrency,
    pipelines,
  });
  process.stdin.on('end', ended);
  eachLine(process.stdin, (line) => {
    const frame = JSON.parse(line);
    if (frame.type === 'run') {
      const abort = new AbortController();
      running.set(frame.id, abort);
      attempt(frame, abort.signal).finally(() => running.delete(frame.id));
    } else if (frame.type === 'cancel') {
      running.get(frame.id)?.abort();
    } else if (frame.type === 'shutdown') {
      ended();
    }
  });
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

/** What one attempt knows of itself, and how it is heard. */
class Context {
  constructor(frame, signal) {
    const { id, job, pipeline, step, attempt: number, token, idempotency_key: key } = frame;
    Object.assign(this, { job, pipeline, step, attempt: number, token, idempotencyKey: key });
    this.givesItems = frame.gives_items;
    this.timeoutMs = frame.timeout_ms;
    /** Aborted when nobody wants the attempt's end any more. */
    this.signal = signal;
    this.send = (part) => send({ ...part, id });
    Object.defineProperty(this, 'send', { enumerable: false });
  }

  /** Writes a line into the node's log; the level is debug, info, warning or error. */
  log(message, level = 'info') {
    this.send({ type: 'log', level, message: String(message) });
  }

  /** Shows that it lives, for phases with a heartbeat_timeout. */
  heartbeat() {
    this.send({ type: 'heartbeat' });
  }

  /** Says how far it has come: a part of 1, and what is being done. */
  progress(done, message) {
    this.send({ type: 'progress', done, message });
  }

  /** Gives one item, where a phase behind does something for_each. */
  item(value) {
    if (!this.givesItems) {
      throw new Fatal(`step ${this.step} gives an item, and no phase has for_each = "${this.step}"`);
    }
    this.send({ type: 'item', item: value === undefined ? null : value });
  }
}

async function attempt(frame, signal) {
  const { id } = frame;
  try {
    const handler = phases.get(frame.phase);
    if (!handler) throw new Fatal(`phase ${frame.phase} is not in this file`);
    const context = new Context(frame, signal);
    const result = await given(handler(frame.instructions, context), context);
    if (typeof result !== 'object' || Array.isArray(result)) {
      throw new Fatal(`the handler gave ${JSON.stringify(result)}: give an object`);
    }
    send({ type: 'result', id, result });
  } catch (error) {
    send({ id, ...failure(error) });
  }
}

async function given(value, context) {
  if (value && typeof value[Symbol.asyncIterator] === 'function') {
    for await (const item of value) context.item(item);
    return {};
  }
  return (await value) ?? {};
}

function failure(error) {
  const message = error instanceof Error ? error.message : String(error);
  if (error instanceof Fatal) return { type: 'error', message, retry: false };
  if (error instanceof Retry) {
    const after = error.after === undefined ? {} : { retry_after: String(error.after) };
    return { type: 'error', message, retry: true, ...after };
  }
  const named = error instanceof Error ? `${error.name}: ${message}` : message;
  return { type: 'error', message: named, retry: true, traceback: error?.stack ?? '' };
}

function send(frame) {
  let line = JSON.stringify(frame);
  // Half a surrogate pair, as of a text that was cut, is no text for others.
  if (line.includes('\\ud')) {
    const whole = (text) => text.replace(/[\ud800-\udfff]/gu, '\ufffd');
    line = JSON.stringify(frame, (_, value) => (typeof value === 'string' ? whole(value) : value));
  }
  let bytes = Buffer.from(`${line}\n`);
  while (bytes.length > 0) {
    try {
      bytes = bytes.subarray(writeSync(1, bytes));
    } catch (error) {
      // A pipe that is full for the moment; any other error means that the node is gone.
      if (error.code !== 'EAGAIN') process.exit(1);
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1);
    }
  }
}
