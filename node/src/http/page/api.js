// The node's interface below `/v1`, as the page uses it. Every refusal becomes a `Problem`.

/** How long an answer may take; changes wait for disks. */
const READ_MS = 10_000;
const CHANGE_MS = 60_000;
const FACTS_MS = 30_000;

/** What went wrong, in words: the title and detail of a problem document, or of what took its place. */
export class Problem extends Error {
  constructor(title, detail, { status = 0, kind = '', retryAfter = null, unanswered = false, at = null } = {}) {
    super(detail ? `${title}: ${detail}` : title);
    Object.assign(this, { title, detail, status, kind, retryAfter, unanswered, at });
  }
}

const KEY = 'carbonmesh-token';

/** The token of whoever uses this tab, if the node asks for one. */
export const token = {
  wasSent: false,
  get: () => sessionStorage.getItem(KEY),
  set: (text) => sessionStorage.setItem(KEY, text),
  forget: () => sessionStorage.removeItem(KEY),
};

/** Whether the node wants to know who calls. */
export const asksWho = (error) => error instanceof Problem && error.status === 401;

/** Tokens are plain; what a header cannot hold is none, and must not keep a request from being made. */
export function authorization() {
  const text = token.get();
  token.wasSent = Boolean(text);
  return /^[\x21-\x7e]+$/.test(text ?? '') ? { authorization: `Bearer ${text}` } : {};
}

/** A number whose spelling would be lost: the text that the cluster sent. */
export class Spelled {
  constructor(text) {
    this.text = text;
  }
}

// What may not come back from a JavaScript number as it was written.
const DELICATE = /\d{16}|\.\d*0(?!\d)|\d[eE]|-0/;

function parse(text) {
  if (!DELICATE.test(text)) return JSON.parse(text);
  return JSON.parse(text, (_, value, context) =>
    typeof value === 'number' && context?.source && context.source !== String(value)
      ? new Spelled(context.source)
      : value);
}

async function call(method, path, { query, body, headers, type, exact = false, wait } = {}) {
  const search = new URLSearchParams(
    Object.entries(query ?? {}).filter(([, value]) => value !== undefined && value !== null && value !== ''));
  const url = `v1/${path.map(encodeURIComponent).join('/')}${search.size ? `?${search}` : ''}`;
  let response;
  let text;
  try {
    response = await fetch(url, {
      method,
      body,
      headers: { accept: 'application/json', ...(type && { 'content-type': type }), ...authorization(), ...headers },
      cache: 'no-store',
      redirect: 'error',
      signal: AbortSignal.timeout(wait ?? (method === 'GET' ? READ_MS : CHANGE_MS)),
    });
    text = await response.text();
  } catch (error) {
    const late = error?.name === 'TimeoutError';
    throw new Problem(
      late ? 'The node did not answer in time' : 'The node does not answer',
      method === 'GET' ? '' : 'It is not known whether this was done.',
      { unanswered: true });
  }
  if (response.ok) {
    if (!text) return null;
    try {
      return exact ? parse(text) : JSON.parse(text);
    } catch {
      throw new Problem('The answer is not understood', `${url} gave no JSON`, { status: response.status });
    }
  }
  let problem = null;
  try {
    problem = JSON.parse(text);
  } catch {
    // Something between here and the node has answered in its place.
  }
  if (typeof problem?.title !== 'string') {
    throw new Problem(`The answer is HTTP status ${response.status}`, text.slice(0, 200), {
      status: response.status,
      unanswered: [502, 503, 504].includes(response.status),
    });
  }
  const kind = String(problem.type ?? '').replace('urn:carbonmesh:problem:', '');
  throw new Problem(capital(problem.title), String(problem.detail ?? ''), {
    status: response.status,
    kind,
    retryAfter: Number(problem.retry_after_s) || null,
    unanswered: kind === 'stopping',
    at: typeof problem.job === 'string' ? problem.job : problem.by ?? problem.parent ?? null,
  });
}

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const JSON_TYPE = 'application/json';
const list = (value) => (Array.isArray(value) ? value : []);

export const api = {
  status: async () => {
    const status = await call('GET', ['status']);
    status.pipelines = list(status.pipelines).map(pipeline);
    return status;
  },
  history: (pipeline, range) => call('GET', ['history'], { query: { pipeline, range } }),
  nodes: async () => list((await call('GET', ['nodes'])).nodes),
  pipeline: async (name) => pipeline(await call('GET', ['pipelines', name], { exact: true })),
  /** What only one pipeline that is asked for tells: what is at its phases, and when its schedules run. */
  detail: async (name) => {
    const { phase_counts: counts, schedule_runs: runs } = await call('GET', ['pipelines', name]);
    return { counts: counts && typeof counts === 'object' ? counts : null, runs: list(runs) };
  },
  /** What nodes find out about each other; they try each other's addresses for that. */
  facts: () => call('GET', ['facts'], { wait: FACTS_MS }),
  handlers: async () => list((await call('GET', ['handlers'])).handlers),
  handler: (phase) => call('GET', ['handlers', phase]),
  explain: (id) => call('GET', ['jobs', id, 'explain']),
  /** Only the node that is asked can be told so. */
  drain: () => call('POST', ['nodes', 'self', 'drain']),
  revisions: async (name) => list((await call('GET', ['pipelines', name, 'revisions'], { exact: true })).revisions),
  jobs: (name, query) => call('GET', ['pipelines', name, 'jobs'], { query }),
  job: async (id) => {
    const job = await call('GET', ['jobs', id], { exact: true });
    job.invocations = list(job.invocations);
    for (const one of job.invocations) one.attempts = list(one.attempts);
    return job;
  },
  /** What is kept of a job's logs, and behind which event more comes. */
  logs: async (id) => {
    const { attempts, next } = await call('GET', ['jobs', id, 'logs']);
    return { attempts: list(attempts).map((one) => ({ ...one, lines: list(one.lines) })), next };
  },
  enqueue: (name, body, query, key) =>
    call('POST', ['pipelines', name, 'jobs'], {
      query, body, type: JSON_TYPE, headers: key ? { 'idempotency-key': key } : {},
    }),
  pause: (name, paused, phase) => call('POST', ['pipelines', name, paused ? 'pause' : 'resume'], { query: { phase } }),
  apply: (name, definition) =>
    call('PUT', ['pipelines', name], { body: JSON.stringify(definition, spelled), type: JSON_TYPE }),
  cancel: (id, reason) => change(['jobs', id, 'cancel'], reason ? { reason } : {}),
  retry: (id, fromStart) => change(['jobs', id, 'retry'], { from_start: fromStart }),
  discard: (id) => call('DELETE', ['jobs', id]),
  signal: (id, name, body) => call('POST', ['jobs', id, 'signals', name], { body, type: JSON_TYPE }),
  failSignal: (id, name, why) => call('POST', ['jobs', id, 'signals', name], { query: { fail: why } }),
  /** One page of a change to all of a pipeline's jobs in a state. */
  changeMany: (how, name, state, after, document) =>
    call('POST', ['pipelines', name, how], {
      query: { state, after },
      ...(how !== 'discard' && { body: JSON.stringify(document ?? {}), type: JSON_TYPE }),
    }),
};

function change(path, document) {
  return call('POST', path, { body: JSON.stringify(document), type: JSON_TYPE });
}

/** Writes numbers as they were spelled, for `JSON.stringify`. */
export function spelled(_, value) {
  return value instanceof Spelled ? (JSON.rawJSON?.(value.text) ?? Number(value.text)) : value;
}

/** Older and newer nodes may leave something out. */
function pipeline(one) {
  one.unoffered = list(one.unoffered);
  one.replicas = list(one.replicas);
  one.paused_phases = list(one.paused_phases);
  one.definition ??= { name: one.name };
  one.definition.phases = list(one.definition.phases);
  one.counts ??= null;
  return one;
}
