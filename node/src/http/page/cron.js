// What a pipeline enqueues by itself: when it did last, and when it will.

import { h } from './dom.js';
import { api } from './api.js';
import { ENDED, badge, href, json, table, time } from './ui.js';
import { count, exact, moment, relative } from './format.js';

/** How many last runs are asked for, each by a request of its own. */
const ASKED = 12;

/** A pipeline's schedules: `load(runs)` with what the node says of their runs, and `render(pipeline)`. */
export function schedules() {
  let runs = [];
  // By job: its state, or that there is none.
  const states = new Map();
  return {
    load: async (found) => {
      runs = found;
      for (const job of [...states.keys()]) if (!runs.some((one) => one.last_job === job)) states.delete(job);
      for (const { last_job: job } of runs.slice(0, ASKED)) {
        if (!job || ENDED.has(states.get(job))) continue;
        try {
          states.set(job, (await api.job(job)).state);
        } catch (error) {
          if (error.unanswered) throw error;
          states.set(job, error.kind === 'unknown-job' ? 'none' : 'unknown');
        }
      }
    },
    render: (pipeline) => {
      const found = pipeline.definition.schedules ?? [];
      return h('section', { class: 'panel', 'aria-labelledby': 'h-schedules' },
        h('div', { class: 'panel-head' }, h('h2', { id: 'h-schedules' }, 'Schedules ', h('span', { class: 'muted' }, count(found.length)))),
        found.length === 0 ? h('p', { class: 'empty' }, 'It enqueues nothing by itself.') : [
          table({
            label: 'Schedules', rows: found, key: (one) => one.name,
            columns: [
              { label: 'Schedule', cell: (one) => [h('strong', {}, one.name), h('div', {}, h('code', {}, one.cron), h('span', { class: 'muted' }, ` ${one.timezone ?? 'UTC'}`)),
                one.missed && h('span', { class: 'tag' }, `missed: ${one.missed}`), one.overlap && h('span', { class: 'tag' }, `overlap: ${one.overlap}`)] },
              { label: 'Last run', cell: (one) => last(runs.find((it) => it.name === one.name)) },
              { label: 'Next runs', cell: (one) => next(pipeline, runs.find((it) => it.name === one.name)) },
            ],
          }),
          h('ul', { class: 'plain' }, found.map((one) => h('li', { key: one.name },
            json(one.instructions ?? {}, { key: JSON.stringify(one.instructions ?? {}), label: `Instructions of ${one.name}`, open: false }))))]);
    },
  };

  function last(run) {
    if (!run?.last_at) return h('span', { class: 'muted' }, 'none yet');
    const state = states.get(run.last_job);
    return [
      state && !['none', 'unknown'].includes(state) ? [h('a', { href: href('jobs', run.last_job) }, time(run.last_at)), ' ', badge(state)] : time(run.last_at),
      state === 'none' && h('span', { class: 'muted' }, ' no such job: missed, left out or forgotten'),
    ];
  }
}

function next(pipeline, run) {
  if (!run) return h('span', { class: 'muted' }, 'not known');
  const times = Array.isArray(run.next) ? run.next : [];
  if (!times.length) return h('span', { class: 'muted' }, 'never again');
  return [
    h('ol', { class: 'next-runs' }, times.map((one) => h('li', { key: one }, h('time', { datetime: one, title: exact(moment(one)) }, exact(moment(one)).split(' (')[0]),
      h('span', { class: 'muted' }, ` ${relative(moment(one))}`)))),
    pipeline.paused && h('span', { class: 'muted' }, 'what comes waits while the pipeline is paused'),
  ];
}
