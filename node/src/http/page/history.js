// The last hour and the last day: what the node has kept, as lines with words beside them.

import { h } from './dom.js';
import { api } from './api.js';
import { button, problem } from './ui.js';
import { count, duration, moment, rate } from './format.js';

/** How old an answer may get, and what a range is called. */
const FRESH_MS = { hour: 9_000, day: 60_000 };
const SPAN = { hour: ['Hour', '1 h ago', 3_600_000], day: ['Day', '1 d ago', 86_400_000] };
const WIDTH = 300;
const HEIGHT = 80;

const CHARTS = [
  { title: 'Finished per second', text: rate, lines: [
    { name: 'succeeded', of: (point, step) => point.succeeded / step },
    { name: 'dead letters', of: (point, step) => point.dead / step }] },
  { title: 'Jobs at once', text: count, lines: [
    { name: 'queued', of: (point) => point.queued },
    { name: 'running', of: (point) => point.running }] },
  { title: 'Time until success', text: duration, lines: [
    { name: 'half of them within', of: (point) => point.p50_ms },
    { name: '95 of 100 within', of: (point) => point.p95_ms }] },
];

// What was chosen stays so from one view to the next.
let range = 'hour';

/** What a pipeline did, or all of them without a name: `load` and `render`, for a view. */
export function past(ctx, name) {
  const state = { document: null, of: null, at: 0, problem: null };
  const choose = async (to) => {
    range = to;
    await ctx.refresh();
  };
  return {
    load: async () => {
      if (state.of === range && performance.now() - state.at < FRESH_MS[range]) return;
      const asked = range;
      try {
        state.document = await api.history(name, asked);
        state.problem = null;
      } catch (error) {
        if (error.unanswered) throw error;
        state.problem = error;
      }
      Object.assign(state, { of: asked, at: performance.now() });
    },
    // An older node keeps none; sums of all pipelines are not for everybody.
    render: () => ![403, 404].includes(state.problem?.status) && h('section', { class: 'panel', 'aria-labelledby': 'h-past' },
      h('div', { class: 'panel-head' },
        h('h2', { id: 'h-past' }, 'What happened'),
        h('div', { class: 'buttons', role: 'group', 'aria-label': 'How far back' }, Object.entries(SPAN).map(([one, [label]]) =>
          button(label, () => choose(one), { key: one, class: 'button small', 'aria-pressed': String(range === one) })))),
      state.problem ? h('div', { class: 'inset' }, problem(state.problem)) : charts(state.document, state.of)),
  };
}

function charts(document, of) {
  const points = (document?.points ?? []).map((one) => ({ ...one, ms: moment(one.at) })).filter((one) => Number.isFinite(one.ms));
  if (points.length < 2) return h('p', { class: 'empty' }, 'The node has not seen enough yet: it looks every ten seconds.');
  const step = document.step_s;
  return h('div', { class: 'charts' }, CHARTS.map((one) => chart(one, points, step, of)));
}

/** The smallest round number that nothing is above. */
function roundUp(most) {
  if (!(most > 0)) return 1;
  const ten = 10 ** Math.floor(Math.log10(most));
  return [1, 2, 5, 10].map((times) => times * ten).find((value) => value >= most * 0.9999);
}

function chart({ title, text, lines }, points, step, of) {
  const [, ago, span] = SPAN[of];
  const end = points.at(-1).ms + step * 1000;
  const found = lines.map((line) => ({ ...line, values: points.map((point) => line.of(point, step) ?? null) }));
  const known = found.flatMap((line) => line.values.filter((value) => value !== null));
  const top = roundUp(known.reduce((most, value) => Math.max(most, value), 0));
  const x = (ms) => WIDTH * (1 - (end - ms - step * 500) / span);
  const y = (value) => HEIGHT - (Math.min(value, top) / top) * (HEIGHT - 2) - 1;
  const words = found.map((line) => summary(line, text));
  const label = `${title}, ${of === 'hour' ? 'the last hour' : 'the last day'}: ${words.map(({ all }) => all).join('; ')}`;
  return h('figure', { class: 'chart', key: title },
    h('figcaption', {}, h('strong', {}, title), h('ul', {}, found.map((line, at) =>
      h('li', { key: line.name }, h('span', { class: `key k${at}`, 'aria-hidden': 'true' }), `${line.name} `, h('b', {}, words[at].now), h('span', { class: 'muted' }, ` most ${words[at].most}`))))),
    h('div', { class: 'plot' },
      h('span', { class: 'top', 'aria-hidden': 'true' }, known.length ? text(top) : ''),
      h('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: 'none', role: 'img', 'aria-label': label },
        h('path', { class: 'base', d: `M0 0.5H${WIDTH}M0 ${HEIGHT / 2}H${WIDTH}M0 ${HEIGHT - 0.5}H${WIDTH}` }),
        found.map((line, at) => h('path', { key: line.name, class: `line k${at}`, d: path(line.values, points, step, x, y) })))),
    h('div', { class: 'axis', 'aria-hidden': 'true' }, h('span', {}, ago), h('span', {}, 'now')));
}

function summary({ name, values }, text) {
  const known = values.filter((value) => value !== null);
  if (!known.length) return { now: '–', most: '–', all: `${name}: not known` };
  const now = values.at(-1) === null ? '–' : text(values.at(-1));
  const most = text(Math.max(...known));
  return { now, most, all: `${name} ${now === '–' ? 'not known at present' : `${now} now`}, at most ${most}` };
}

/** A line that is interrupted where nothing is known. */
function path(values, points, step, x, y) {
  let out = '';
  let last = null;
  values.forEach((value, at) => {
    if (value === null) return;
    const { ms } = points[at];
    const joins = last !== null && ms - last <= step * 1500;
    const [left, height] = [x(ms).toFixed(1), y(value).toFixed(1)];
    // A point by itself is a short line.
    out += joins ? `L${left} ${height}` : `M${left} ${height}h0.8`;
    last = ms;
  });
  return out;
}
