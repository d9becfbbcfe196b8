// Drawings over time: rates, and what ran when.

import { h } from './dom.js';
import { counted, duration, exact, moment, nodeName, rate as rateText } from './format.js';

/** A line with its area; wide and low, without axes. */
export function sparkline(points, { width = 100, height = 24, label } = {}) {
  const props = { class: 'spark', viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: 'none', role: 'img', 'aria-label': label };
  if (points.length < 2) return h('svg', props, h('path', { class: 'base', d: `M0 ${height - 0.5}H${width}` }), null);
  // A minute at least, so that the first moments do not look like a trend.
  const span = Math.max(60_000, points.at(-1).at - points[0].at);
  const from = points.at(-1).at - span;
  const top = Math.max(1e-9, ...points.map((one) => one.rate));
  const step = Math.max(1, Math.ceil(points.length / (width * 1.5)));
  let line = '';
  for (let at = 0; at < points.length; at += step) {
    const slice = points.slice(at, at + step);
    const high = slice.reduce((best, one) => (one.rate > best.rate ? one : best));
    const x = ((high.at - from) / span) * width;
    const y = height - 1 - (high.rate / top) * (height - 3);
    line += `${line ? 'L' : 'M'}${x.toFixed(1)} ${y.toFixed(1)}`;
  }
  const start = line.slice(1, line.indexOf(' '));
  return h('svg', props,
    h('path', { class: 'area', d: `${line}V${height}H${start}Z` }),
    h('path', { class: 'line', d: line }));
}

/** The rate of something with its line. */
export function rateLine(found, { width, height } = {}) {
  const top = found.points.reduce((most, one) => Math.max(most, one.rate), 0);
  const label = found.now === null
    ? 'Jobs finished per second: not known yet'
    : `Jobs finished per second: ${rateText(found.now)} now, at most ${rateText(top)} in ${duration(found.since)}`;
  return sparkline(found.points, { width, height, label });
}

/**
 * What ran when. Rows: `{ key, name, number, start, end, state, worker, title }`, times in ms; `end` is
 * null while it runs. `waits` says that nothing does at present.
 */
export function gantt(rows, { created, now, finished, waits }) {
  const shown = rows.filter((row) => Number.isFinite(row.start));
  if (!shown.length) return h('p', { class: 'empty' }, 'Nothing has run yet.');
  const first = Math.min(...shown.map((row) => row.start));
  const end = Math.max(finished || 0, ...shown.map((row) => row.end ?? now));
  // A long wait before the first attempt would leave no room for what ran.
  const waited = first - created;
  const idle = waits ? now - end : 0;
  const cut = waited > (end - created) * 0.4 && waited > 1000;
  const start = cut ? first : Math.min(created, first);
  const span = Math.max(1, end - start);
  const place = (ms) => `${(Math.max(0, Math.min(1, (ms - start) / span)) * 100).toFixed(3)}%`;
  const ticks = tickTimes(span);
  let before = null;
  return h('div', { class: 'gantt', role: 'group', 'aria-label': `Timeline of ${counted(shown.length, 'attempt')}; the list of phases below says the same in words` },
    h('div', { class: 'gantt-axis', 'aria-hidden': 'true' }, h('span', {}), h('div', { class: 'gantt-track' },
      ticks.filter((ms) => ms / span < 0.9).map((ms) => h('span', { key: ms, class: 'tick', style: { left: place(start + ms) } }, ms === 0 ? (cut ? `+${duration(waited)}` : '0') : `${cut ? '+' : ''}${duration(ms)}`)))),
    shown.map((row) => {
      const again = row.name === before;
      before = row.name;
      const left = Math.max(0, (row.start - start) / span);
      const width = Math.max(0, ((row.end ?? now) - row.start) / span);
      const text = `${duration((row.end ?? now) - row.start)} · ${nodeName(row.worker)}`;
      // Beside the bar, where there is more room.
      const side = width > 0.3 ? 'inside' : left + width > 0.6 ? 'before' : 'behind';
      return h('div', { class: 'gantt-row', key: row.key, title: row.title },
        h('span', { class: 'gantt-name' }, again ? '' : row.name, h('span', { class: 'muted' }, ` #${row.number}`)),
        h('div', { class: 'gantt-track' },
          ticks.map((ms) => h('span', { key: ms, class: 'grid', style: { left: place(start + ms) } })),
          h('span', { class: `gantt-bar s-${row.state}${row.end === null ? ' open' : ''}`, style: { left: `${(left * 100).toFixed(3)}%`, width: `${(width * 100).toFixed(3)}%` } },
            side === 'inside' && h('span', { class: 'gantt-text' }, text)),
          side !== 'inside' && h('span', { class: `gantt-text ${side}`, style: side === 'behind' ? { left: `${((left + width) * 100).toFixed(3)}%` } : { right: `${((1 - left) * 100).toFixed(3)}%` } }, text)));
    }),
    idle > 1000 && h('p', { class: 'gantt-idle muted' }, `Nothing has run for ${duration(idle)}.`));
}

function tickTimes(span) {
  const nice = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 15e3, 3e4, 6e4, 12e4, 3e5, 6e5, 9e5, 18e5, 36e5, 72e5, 108e5, 216e5, 432e5, 864e5, 1728e5, 6048e5];
  const step = nice.find((one) => span / one <= 5) ?? span / 4;
  const out = [];
  for (let ms = 0; ms <= span; ms += step) out.push(ms);
  return out;
}

/** The title of an attempt's bar. */
export function attemptTitle(step, attempt, outcome) {
  const end = attempt.finished_at ? `\nended ${exact(moment(attempt.finished_at))}` : '';
  return `${step}, attempt ${attempt.number}: ${outcome}\non ${nodeName(attempt.worker)}\nbegan ${exact(moment(attempt.started_at))}${end}`;
}
