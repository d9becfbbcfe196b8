// How fast jobs finish, from successive counts; kept while the page is open.

/** How far the drawings look back, and over how long a rate is taken: counts come every second or two. */
const KEPT_MS = 15 * 60_000;
const WINDOW_MS = 8_000;

const series = new Map();
export const TOTAL = Symbol('all pipelines');

const done = (counts) => [counts.succeeded, counts.dead, counts.cancelled];

/** Takes in what a node said just now. */
export function sample(pipelines, at = performance.now()) {
  let all = 0;
  let known = false;
  const names = new Set();
  for (const one of pipelines) {
    names.add(one.name);
    const mine = series.get(one.name) ?? { last: null, points: [] };
    series.set(one.name, mine);
    // Without a coordinator nobody counts: such a time is a gap.
    if (!one.counts) continue;
    const now = done(one.counts);
    if (mine.last) {
      // Counts also fall: what is forgotten or tried again leaves them.
      const finished = now.reduce((sum, value, at) => sum + Math.max(0, (value || 0) - (mine.last[at] || 0)), 0);
      push(mine.points, at, finished);
      all += finished;
      known = true;
    } else {
      push(mine.points, at, 0);
    }
    mine.last = now;
  }
  for (const name of series.keys()) if (name !== TOTAL && !names.has(name)) series.delete(name);
  const total = series.get(TOTAL) ?? { points: [] };
  series.set(TOTAL, total);
  if (known || !total.points.length) push(total.points, at, all);
}

function push(points, at, finished) {
  points.push({ at, finished });
  while (points.length > 2 && points[0].at < at - KEPT_MS) points.shift();
}

/** `{ now, points: [{ at, rate }], since }`; `now` is null as long as nothing can be said. */
export function rateOf(name) {
  const points = series.get(name)?.points ?? [];
  const out = [];
  let sum = 0;
  for (let from = 0, at = 0; at < points.length; at += 1) {
    if (at > 0) sum += points[at].finished;
    while (from < at - 1 && points[at].at - points[from].at > WINDOW_MS) sum -= points[(from += 1)].finished;
    const span = (points[at].at - points[from].at) / 1000;
    if (span > 0) out.push({ at: points[at].at, rate: Math.max(0, sum) / span });
  }
  return { now: out.length ? out.at(-1).rate : null, points: out, since: out.length ? out.at(-1).at - out[0].at : 0 };
}
