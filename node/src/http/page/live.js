// What happens, as it happens: a pipeline's events as lines of JSON, in one answer that does not end.
//
// It is a comfort: whatever goes wrong with it, the views go on asking as they do without.

import { authorization } from './api.js';

/** How long to wait before a stream that broke is opened again. */
const AGAIN_MS = 2_000;
const LATER_MS = 30_000;

/** The longest line that is read. */
const LINE_CHARS = 1 << 20;

const shown = () => new Promise((resolve) => {
  if (!document.hidden) return resolve();
  document.addEventListener('visibilitychange', function look() {
    if (document.hidden) return;
    document.removeEventListener('visibilitychange', look);
    resolve();
  });
});

/**
 * Calls `tell` with some events at a time, from behind `after`, until the function that it gives back is
 * called.
 */
export function follow(pipeline, { after, job, kinds }, tell) {
  const stop = new AbortController();
  let token = after;
  let wait = AGAIN_MS;

  async function read() {
    const query = new URLSearchParams(Object.entries({ after: token, job, kinds }).filter(([, value]) => value));
    const response = await fetch(`v1/pipelines/${encodeURIComponent(pipeline)}/events?${query}`, {
      headers: { accept: 'application/x-ndjson', ...authorization() },
      cache: 'no-store',
      redirect: 'error',
      signal: stop.signal,
    });
    const type = response.headers.get('content-type') ?? '';
    if (!response.ok || !type.startsWith('application/x-ndjson')) {
      await response.body?.cancel();
      wait = LATER_MS;
      return;
    }
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = '';
    for (;;) {
      const { value, done } = await reader.read();
      if (done || rest.length > LINE_CHARS) return;
      const lines = (rest + value).split('\n');
      rest = lines.pop();
      const events = lines.filter(Boolean).map((line) => JSON.parse(line));
      if (!events.length) continue;
      wait = AGAIN_MS;
      token = events.findLast((event) => typeof event.token === 'string')?.token ?? token;
      const told = events.filter((event) => event.kind !== 'alive' && event.kind !== 'end');
      if (told.length) tell(told);
    }
  }

  (async () => {
    while (!stop.signal.aborted) {
      await shown();
      try {
        await read();
      } catch {
        // The node has gone, or what came is not understood.
      }
      if (stop.signal.aborted) return;
      await new Promise((resolve) => setTimeout(resolve, wait));
      wait = Math.min(LATER_MS, wait * 2);
    }
  })();
  return () => stop.abort();
}

/** Calls `act` soon, once for all that asked for it meanwhile. */
export function soon(act, ms) {
  let timer = 0;
  return () => {
    timer ||= setTimeout(() => {
      timer = 0;
      act();
    }, ms);
  };
}
