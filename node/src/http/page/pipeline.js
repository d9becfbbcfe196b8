// One pipeline: its phases, its jobs, its definitions; and dead letters of all.

import { h } from './dom.js';
import { Problem, api } from './api.js';
import {
  ENDED, STATES, badge, button, cellCount, changeAll, confirm, dialog, facts, field, href, icon, jobLink, json, node, note,
  notAnObject, parts, pipelineLink, problem, slots, table, time,
} from './ui.js';
import { count, counted, rate, short } from './format.js';
import { rateLine } from './charts.js';
import { past } from './history.js';
import { rateOf } from './rates.js';
import { about, graph, phasesOf, worked } from './graph.js';
import { alerts, offers, tile } from './overview.js';
import { follow, soon } from './live.js';
import { schedules } from './cron.js';
import { fieldsOf, gather, schemaForm, startOf } from './schema.js';

const PAGE = 50;

/** What is shown of a pipeline's events, and how many of them. */
const NOTABLE = 'coordinator,attempt_failed,attempt_lost,retried,dead,cancelled,paused,resumed,revised';
const EVENTS = 30;
const SINCE = { '10m': 10, '1h': 60, '1d': 24 * 60, '7d': 7 * 24 * 60 };
const LETTER = ['dead letter', 'dead letters'];

/** The smallest id that a job can have which was enqueued without a key at this time: such ids begin with it. */
const idOfTime = (ms) => {
  const hex = Math.max(0, Math.floor(ms)).toString(16).padStart(12, '0');
  return `${hex.slice(0, 8)}-${hex.slice(8)}-7000-8000-000000000000`;
};

export function pipelineView(ctx, name, query) {
  const state = { jobs: null, counts: null, problem: null, revisions: null, revisionsOf: null, wantRevisions: false, missing: null, events: [], stop: null };
  const redrawSoon = soon(() => ctx.redraw(), 300);
  const filter = STATES.includes(query.get('state')) ? query.get('state') : null;
  const since = query.get('since') in SINCE ? query.get('since') : null;
  const oldest = since !== null || query.get('order') === 'oldest';
  const cursor = query.get('after');
  const find = () => ctx.status.pipelines.find((one) => one.name === name);
  const link = (change) => {
    const to = new URLSearchParams(Object.entries({ state: filter, since, order: oldest && !since ? 'oldest' : null, ...change }).filter(([, value]) => value));
    return `${href('pipelines', name)}${to.size ? `?${to}` : ''}`;
  };
  const pause = async (paused, phase) => {
    await api.pause(name, paused, phase);
    note(`${phase ? `Phase ${phase}` : name} ${paused ? 'is paused: what runs goes on.' : 'goes on.'}`);
    await ctx.refresh();
  };
  const history = past(ctx, name);
  const cron = schedules();
  const many = async (how) => {
    const known = find()?.counts?.[filter] ?? null;
    const changed = await bulk(how, name, filter, known);
    if (changed !== null) await ctx.refresh();
  };

  return {
    title: name,
    close: () => {
      state.closed = true;
      state.stop?.();
    },
    load: async () => {
      if (find() && !state.stop && !state.closed) {
        state.stop = follow(name, { kinds: NOTABLE }, (events) => {
          state.events = [...state.events, ...events].slice(-EVENTS);
          redrawSoon();
        });
      }
      if (!find()) {
        // What the node says of a name that it does not know.
        state.missing = null;
        await api.pipeline(name).catch((error) => (state.missing = error));
        return;
      }
      state.missing = null;
      try {
        const after = cursor ?? (since ? idOfTime(Date.now() - SINCE[since] * 60_000) : null);
        state.jobs = await api.jobs(name, { state: filter, after, limit: PAGE, order: oldest ? null : 'newest' });
        state.problem = null;
      } catch (error) {
        if (error.unanswered) throw error;
        state.problem = error;
      }
      try {
        const detail = await api.detail(name);
        state.counts = detail.counts;
        await cron.load(detail.runs);
      } catch (error) {
        if (error.unanswered) throw error;
        state.counts = null;
      }
      await history.load();
      const revision = find().revision;
      if (state.wantRevisions && state.revisionsOf !== revision) {
        state.revisions = await api.revisions(name);
        state.revisionsOf = revision;
      }
    },
    render: () => {
      const one = find();
      if (!one) return [h('h1', {}, short(name, 64)), state.missing ? problem(state.missing) : h('p', { class: 'empty' }, 'Loading…')];
      const phases = phasesOf(one.definition.phases);
      const found = rateOf(name);
      const counts = one.counts;
      return [
        h('div', { class: 'page-head' },
          h('h1', {}, h('span', { class: 'kind' }, 'Pipeline'), name),
          one.paused && badge('paused'),
          h('div', { class: 'buttons' },
            button('Enqueue…', () => enqueue(ctx, name), { class: 'button primary', id: 'enqueue' }),
            button(one.paused ? 'Resume' : 'Pause', () => pause(!one.paused), { id: 'pause' }))),
        alerts(ctx, warningsOf(one)),
        h('div', { class: 'tiles' },
          tile({ label: 'Finished per second', value: rate(found.now), kind: 'wide', chart: rateLine(found, { width: 260, height: 48 }) }),
          tile({ label: 'Queued', value: count(counts?.queued), kind: 't-queued', text: counts ? null : 'nobody counts at present' }),
          tile({ label: 'Running', value: count(counts?.running), kind: 't-running', text: counts?.items > 0 ? `${counted(counts.items, 'item')} unfinished` : null }),
          tile({ label: 'Succeeded', value: count(counts?.succeeded) }),
          tile({ label: 'Dead letters', value: count(counts?.dead), kind: counts?.dead > 0 ? 't-dead' : '' }),
          tile({ label: 'Cancelled', value: count(counts?.cancelled) })),
        h('section', { class: 'panel', 'aria-labelledby': 'h-graph' },
          h('div', { class: 'panel-head' }, h('h2', { id: 'h-graph' }, 'Phases ', h('span', { class: 'muted' }, count(phases.length)))),
          graph(phases, {
            label: `Phases of ${name}`,
            look: (phase) => lookOf(phase, one, offers(ctx.nodes), state.counts),
            choose: (phase) => choose(`phase-${phase.name}`),
          }),
          phaseTable(ctx, one, phases, pause, state.counts)),
        history.render(),
        jobsPanel(),
        h('div', { class: 'columns' },
          h('section', { class: 'panel grow', 'aria-labelledby': 'h-definition' },
            h('div', { class: 'panel-head' }, h('h2', { id: 'h-definition' }, 'Definition')),
            facts([
              ['Revision', h('span', { class: 'mono' }, one.revision)],
              ['Goes on', one.definition.preset ?? `accept ${one.definition.accept ?? 'any'}, execute ${one.definition.execute ?? 'any'}`],
              ['Coordinator', one.coordinator ? [node(one.coordinator), h('span', { class: 'muted' }, ` term ${count(one.term)}`)] : h('span', { class: 'bad-text' }, 'nobody at present')],
              ['Replicas', [`${one.replicas.length} of ${one.definition.replicas ?? 3}: `, one.replicas.map((replica, at) => [at ? ', ' : '', node(replica)])]],
              ['Partitions', one.partitions?.length > 0 && h('ol', { start: 0 }, one.partitions.map((part, at) => h('li', { key: at },
                part.coordinator ? [node(part.coordinator), h('span', { class: 'muted' }, ` term ${count(part.term)}`)] : h('span', { class: 'bad-text' }, 'nobody at present'))))],
              ['Timeout', one.definition.timeout],
              ['Fair by', one.definition.fair_by && h('code', {}, one.definition.fair_by)],
              ['Kept', one.definition.retention && keptText(one.definition.retention)],
            ]),
            h('details', { class: 'more-of', ontoggle: (event) => wantRevisions(event.target.open) },
              h('summary', {}, 'Document and revisions'),
              state.revisions === null ? h('p', { class: 'empty' }, 'Loading…') : revisions(state.revisions))),
          cron.render(one)),
        state.events.length > 0 && h('section', { class: 'panel', 'aria-labelledby': 'h-events' },
          h('div', { class: 'panel-head' }, h('h2', { id: 'h-events' }, 'What happened lately'), h('span', { class: 'muted' }, 'failures, retries, pauses and coordinators; the newest first')),
          table({
            label: 'What happened lately', rows: state.events.toReversed(), key: (event) => event.token,
            columns: [
              { label: 'When', cell: (event) => time(event.at) },
              { label: 'What', cell: (event) => h('span', { class: event.kind === 'dead' ? 'bad-text' : '' }, String(event.kind).replaceAll('_', ' ')) },
              { label: 'Job', kind: 'id', minor: true, cell: (event) => event.job && jobLink(event.job) },
              { label: 'Phase', minor: true, cell: (event) => event.phase && `${event.phase}${event.attempt ? `#${event.attempt}` : ''}` },
              { label: 'Why', kind: 'text', cell: (event) => event.error || event.reason ? h('span', { title: short(event.error ?? event.reason, 2000) }, short(event.error ?? event.reason, 120)) : event.node && node(event.node) },
            ],
          })),
      ];
    },
  };

  function wantRevisions(open) {
    state.wantRevisions = open;
    if (open && state.revisionsOf !== find()?.revision) ctx.refresh();
  }

  function revisions(list) {
    return h('ol', { class: 'revisions' }, list.map((one) => h('li', { key: one.revision },
      h('div', { class: 'line' }, h('span', { class: 'mono' }, one.revision), h('span', { class: 'muted' }, ` change ${count(one.applied)}, ${counted((one.definition?.phases ?? []).length, 'phase')}`),
        one.current && h('span', { class: 'tag' }, 'current'),
        !one.current && button('Make current…', () => rollBack(one), { class: 'button small' })),
      json(one.definition, { key: one.revision, label: `Definition ${one.revision}`, open: false }))));
  }

  async function rollBack(one) {
    const sure = await confirm({ title: 'Make this the current definition?', text: `Jobs of ${name} to come follow revision ${one.revision}. Jobs that are there keep the definition they began with.`, yes: 'Make current' });
    if (!sure) return;
    const applied = await api.apply(name, one.definition);
    note(applied.changed ? `${name} follows revision ${applied.revision}.` : 'Nothing changes.');
    await ctx.refresh();
  }

  function jobsPanel() {
    const one = find();
    const jobs = state.jobs?.jobs ?? [];
    const known = filter ? one.counts?.[filter] : null;
    const label = known === null || known === undefined ? 'all' : count(known);
    return h('section', { class: 'panel', 'aria-labelledby': 'h-jobs' },
      h('div', { class: 'panel-head' }, h('h2', { id: 'h-jobs' }, 'Jobs'),
        h('nav', { class: 'filters', 'aria-label': 'Jobs by state' }, [null, ...STATES].map((each) => h('a', {
          key: each ?? 'all', href: link({ state: each }), 'aria-current': each === filter ? 'true' : undefined,
        }, each && icon(each), each ?? 'all', each && one.counts && h('span', { class: 'muted' }, count(one.counts[each]))))),
        h('label', { class: 'inline', title: 'By the time in the ids of jobs that have no key; ids of jobs with a key are in no order of time, and most of them come behind' }, 'from ',
          h('select', { value: since ?? (oldest ? 'oldest' : ''), onchange: ({ target: { value } }) => ctx.go(link(value in SINCE ? { since: value, order: null } : { since: null, order: value })) },
            h('option', { value: '' }, 'the newest'), h('option', { value: 'oldest', selected: oldest && !since }, 'the oldest'), Object.keys(SINCE).map((each) => h('option', { value: each, selected: each === since }, `${each} ago`)))),
        h('div', { class: 'buttons' },
          (filter === 'queued' || filter === 'running') && button(`Cancel ${label}…`, () => many('cancel'), { class: 'button small danger' }),
          (filter === 'dead' || filter === 'cancelled') && button(`Retry ${label}…`, () => many('retry'), { class: 'button small' }),
          ENDED.has(filter) && button(`Discard ${label}…`, () => many('discard'), { class: 'button small danger' }))),
      state.problem && problem(state.problem),
      state.jobs && jobTable(jobs, `Jobs of ${name}`, cursor ? 'No more jobs.' : filter ? `No job is ${filter}.` : 'No job yet.'),
      (cursor || state.jobs?.next) && h('div', { class: 'pages' },
        cursor && h('a', { class: 'button small', href: link({}) }, 'First page'),
        state.jobs?.next && h('a', { class: 'button small', href: link({ after: state.jobs.next }), rel: 'next' }, 'Next page')));
  }
}

function warningsOf(one) {
  return [
    ...one.unoffered.map((phase) => ({ key: phase, bad: true, text: ['Nobody offers phase ', h('strong', {}, phase), ': jobs wait for it. Start a node that has it.'] })),
    ...(parts(one).every((part) => part.coordinator) ? [] : [{ key: ' alone', text: ['Nobody coordinates it at present: jobs are not given out, and nothing can be changed.'] }]),
    ...(one.paused ? [{ key: ' paused', text: ['It is paused: nothing more is given out; what runs goes on.'] }] : []),
  ];
}

/** Leads to what was chosen in a drawing. */
export function choose(id) {
  const to = document.getElementById(id);
  if (!to) return;
  for (const details of [to, to.querySelector('details')]) if (details?.tagName === 'DETAILS') details.open = true;
  to.scrollIntoView({ block: 'center', behavior: matchMedia('(prefers-reduced-motion: reduce)').matches ? 'auto' : 'smooth' });
  to.tabIndex = -1;
  to.focus({ preventScroll: true });
}

/** What waits and runs at the steps of a phase, what undoes it left out; null if nobody says. */
function countsOf(phase, counts) {
  if (!counts) return null;
  return worked([{ ...phase, compensate: null }]).reduce((sum, one) => ({
    waiting: sum.waiting + (counts[one.name]?.waiting || 0),
    running: sum.running + (counts[one.name]?.running || 0),
  }), { waiting: 0, running: 0 });
}

function lookOf(phase, pipeline, offered, counts) {
  const needs = [...new Set(worked([{ ...phase, compensate: null }]).map((one) => one.phase))];
  const found = needs.map((one) => offered.get(one));
  const places = found.reduce((sum, one) => sum + (one?.slots ?? 0), 0);
  const busy = found.reduce((sum, one) => sum + (one?.busy ?? 0), 0);
  const said = about(phase);
  const here = needs.length ? countsOf(phase, counts) : null;
  const jobs = here && (here.waiting || here.running ? `${count(here.waiting)} wait · ${count(here.running)} run` : null);
  if (pipeline.paused_phases.includes(phase.name)) return { state: 'paused', text: jobs ?? 'paused', note: said };
  const missing = needs.filter((one) => !offered.has(one));
  if (missing.length) return { state: 'warning', text: jobs ?? 'nobody offers it', note: `nobody offers ${missing.join(', ')}` };
  const free = needs.length ? `${count(busy)}/${count(places)} busy` : '';
  const text = jobs ?? [said && short(said, 15), free].filter(Boolean).join(' · ');
  return { state: here?.running ? 'running' : here?.waiting ? 'queued' : undefined, text, note: [said, jobs && free].filter(Boolean).join(', ') };
}

function phaseTable(ctx, pipeline, phases, pause, counts) {
  const offered = offers(ctx.nodes);
  const rows = phases.flatMap((one) => [
    { ...one, top: true, id: one.name },
    ...(one.within ? one.within.map((each) => ({ ...each, inside: one.name, id: `${one.name}/${each.name}` })) : []),
    ...(one.compensate ? phasesOf([one.compensate]).map((each) => ({ ...each, undoes: one.name, id: `undo ${one.name}` })) : []),
  ]);
  const offer = (one) => {
    if (one.wait_for || one.within) return h('span', { class: 'muted' }, one.wait_for ? 'a signal' : 'its own phases');
    const found = offered.get(one.phase);
    return found ? slots(found.busy, found.slots) : badge('warning', 'nobody');
  };
  return h('details', { class: 'more-of', opened: phases.length <= 8 },
    h('summary', {}, 'What is known of each'),
    table({
      label: 'Phases', rows, key: (one) => one.id, rowProps: (one) => ({ id: `phase-${one.id}` }),
      columns: [
        { label: 'Phase', cell: (one) => [
          one.inside && h('span', { class: 'muted' }, '↳ each '), one.undoes && h('span', { class: 'muted' }, '↶ undo '),
          h('strong', {}, one.name), one.top && pipeline.paused_phases.includes(one.name) && badge('paused')] },
        { label: 'After', minor: true, cell: (one) => (one.undoes ? h('span', { class: 'muted' }, `if ${one.undoes} had succeeded`) : one.for_each ? `each of ${one.for_each}` : one.after.join(', ') || h('span', { class: 'muted' }, '–')) },
        { label: 'Run by', minor: true, cell: (one) => (one.wait_for ? ['signal ', h('strong', {}, one.wait_for)] : one.within ? h('span', { class: 'muted' }, '–') : one.phase) },
        { label: 'Waiting', num: true, cell: (one) => (one.wait_for || one.within ? h('span', { class: 'muted' }, '–') : cellCount(counts ? counts[one.name]?.waiting ?? 0 : null)) },
        { label: 'Running', num: true, cell: (one) => (one.wait_for || one.within ? h('span', { class: 'muted' }, '–') : cellCount(counts ? counts[one.name]?.running ?? 0 : null)) },
        { label: 'Slots busy', cell: offer },
        { label: 'Nodes', num: true, least: true, cell: (one) => (one.wait_for || one.within ? '–' : count(offered.get(one.phase)?.nodes.length ?? 0)) },
        { label: 'Settings', minor: true, kind: 'settings', cell: settings },
        { label: '', cell: (one) => one.top && (pipeline.paused_phases.includes(one.name)
          ? button('Resume', () => pause(false, one.name), { class: 'button small', 'aria-label': `Resume phase ${one.name}` })
          : button('Pause', () => pause(true, one.name), { class: 'button small', 'aria-label': `Pause phase ${one.name}` })) },
      ],
    }));
}

function settings(one) {
  const backoff = one.backoff && `backoff ${one.backoff.initial ?? '1s'} to ${one.backoff.max ?? '1m'}`;
  return [
    !one.wait_for && !one.within && `${counted(one.max_attempts ?? 3, 'attempt')}`, backoff, one.timeout && `timeout ${one.timeout}`, one.total_timeout && `${one.total_timeout} in all`,
    one.heartbeat_timeout && `heartbeat ${one.heartbeat_timeout}`, one.rate && `${count(one.rate.count)} per ${one.rate.per}`,
    one.limit && `${count(one.limit.running)} at once for each ${one.limit.key}`, one.when && `if ${one.when}`,
    one.input && `input ${one.input}`, one.input_mapping && `gets ${one.input_mapping}`, one.output_mapping && `gives ${one.output_mapping}`,
    one.combine && `combine ${one.combine}`, one.tolerate_percent && `${one.tolerate_percent} % may fail`,
  ].filter(Boolean).map((text, at) => h('span', { key: at, class: 'tag', title: text }, short(text, 60)));
}

function keptText(retention) {
  return STATES.filter((state) => retention[state]).map((state) =>
    `${state} ${[retention[state].age, retention[state].count !== undefined && `${counted(retention[state].count, 'job')} at most`].filter(Boolean).join(', ')}`).join('; ');
}

/** Jobs in a list; `acts` is a last column, for jobs that are all in one state. */
export function jobTable(jobs, label, empty, acts) {
  const keys = jobs.some((one) => one.key !== null);
  const errors = jobs.some((one) => one.error);
  return table({
    label, rows: jobs, key: (one) => one.id, empty,
    columns: [
      ...(acts ? [] : [{ label: 'State', cell: (one) => badge(one.state) }]),
      { label: 'Job', kind: 'id', cell: (one) => jobLink(one.id) },
      { label: 'Enqueued', cell: (one) => time(one.created_at) },
      { label: 'Phase', minor: true, cell: (one) => one.step ?? h('span', { class: 'muted' }, '–') },
      ...(!keys ? [] : [{ label: 'Key', minor: true, kind: 'text', cell: (one) => one.key !== null && h('span', { class: 'mono small', title: short(one.key, 300) }, short(one.key, 40)) }]),
      ...(!errors ? [] : [{ label: 'Error', minor: true, kind: 'text', cell: (one) => one.error && h('span', { class: one.state === 'dead' ? 'bad-text' : 'muted', title: short(one.error, 2000) }, short(one.error, 120)) }]),
      ...(acts ? [{ label: '', kind: 'acts', cell: acts }] : []),
    ],
  });
}

// -------------------------------------------------------------------------------------- changes

const HOW = {
  cancel: { verb: 'Cancel', done: 'cancelled', danger: true },
  retry: { verb: 'Retry', done: 'tried again', danger: false },
  discard: { verb: 'Discard', done: 'forgotten', danger: true },
};

/** Changes all of a pipeline's jobs in a state, after asking. */
async function bulk(how, name, state, known) {
  const { verb, done, danger } = HOW[how];
  const what = state === 'dead' ? LETTER : [`${state} job`, `${state} jobs`];
  return changeAll({
    title: `${verb} all ${what[1]} of ${name}?`, known, what, verb, done, danger,
    fields: how === 'retry' ? fromStart('') : how === 'cancel' ? reason() : null,
    step: (after, given) => api.changeMany(how, name, state, after,
      how === 'retry' ? { from_start: given.from === 'start' } : given.reason ? { reason: given.reason } : {}),
  });
}

export function fromStart(only) {
  return h('fieldset', { class: 'choices' }, h('legend', {}, 'Run again'),
    h('label', {}, h('input', { type: 'radio', name: 'from', value: 'rest', checked: !only, disabled: Boolean(only) }), 'what did not succeed'),
    h('label', {}, h('input', { type: 'radio', name: 'from', value: 'start', checked: Boolean(only) }), 'all of it, from the start'),
    only && h('p', { class: 'hint' }, only));
}

export const reason = () => field('Reason, for people', h('input', { name: 'reason', maxlength: 500, autocomplete: 'off' }));

/** The form for a new job: fields, where the pipeline says what its jobs look like, or JSON. */
async function enqueue(ctx, name) {
  const definition = ctx.status.pipelines.find((one) => one.name === name)?.definition;
  const fields = fieldsOf(definition?.input_schema);
  const form = { text: '{}', start: '{}', wrong: null, refused: null, receipt: null, sending: false, fields, typed: !fields, problems: new Map(), values: fields && startOf(fields) };
  form.first = form.values && new Map(form.values);

  /** What is to be sent; null, with what is wrong said, if it cannot be. */
  function instructions() {
    if (form.typed) {
      form.wrong = notAnObject(form.text);
      return form.wrong ? null : form.text;
    }
    const made = gather(fields, form.values);
    form.problems = made.problems;
    return made.problems.size ? null : made.text;
  }

  /** From fields to JSON and back, with what was given. */
  function turn() {
    if (!form.typed) {
      const { text } = gather(fields, form.values);
      form.text = form.start = notAnObject(text) ? '{}' : JSON.stringify(JSON.parse(text), null, 2);
      form.typed = true;
      return;
    }
    form.wrong = notAnObject(form.text);
    if (form.wrong) return;
    const given = JSON.parse(form.text);
    const strange = Object.keys(given).filter((key) => !fields.some((one) => one.name === key));
    if (strange.length) {
      form.wrong = `There is no field for ${strange.slice(0, 5).join(', ')}.`;
      return;
    }
    form.first = startOf(fields, given);
    form.values = new Map(form.first);
    form.problems = new Map();
    form.typed = false;
  }

  await dialog(`Enqueue a job for ${name}`, ({ close, redraw }) => h('form', {
    class: 'enqueue', novalidate: true,
    onsubmit: async (event) => {
      event.preventDefault();
      if (form.sending) return;
      form.wrong = null;
      form.refused = null;
      form.receipt = null;
      const body = instructions();
      if (body === null) {
        redraw();
        event.target.querySelector('[aria-invalid="true"]')?.focus();
        return;
      }
      const { key, delay, run_at: runAt, timeout, deadline, priority } = Object.fromEntries(new FormData(event.target));
      const moment = (text) => (text ? new Date(text).toISOString() : '');
      form.sending = true;
      redraw();
      try {
        // A browser sends no other characters in a header.
        if (/[^ -~]/.test(key)) throw new Problem('Bad idempotency key', 'Only visible ASCII is allowed.');
        form.receipt = await api.enqueue(name, body, { delay: delay.trim(), run_at: moment(runAt), timeout: timeout.trim(), deadline: moment(deadline), priority }, key);
        ctx.refresh();
      } catch (error) {
        form.refused = error;
      }
      form.sending = false;
      redraw();
    },
  },
    fields && h('div', { class: 'line turn' }, h('h3', {}, form.typed ? 'As JSON' : 'By the pipeline’s input schema'),
      h('button', { type: 'button', class: 'button small', onclick: () => {
        turn();
        redraw();
      } }, form.typed ? 'As fields' : 'As JSON')),
    !form.typed && h('div', { key: 'fields', class: 'schema-fields' }, schemaForm(fields, form.first, form.problems, (field, value) => {
      form.values.set(field, value);
      // While somebody types, only what was wrong already is said.
      if (!form.problems.has(field)) return;
      form.problems = new Map([...gather(fields, form.values).problems].filter(([one]) => form.problems.has(one)));
      redraw();
    })),
    form.typed && h('div', { key: 'typed' }, field('Instructions, one JSON object', h('textarea', {
      name: 'instructions', rows: 8, spellcheck: 'false', autocomplete: 'off', value: form.start, 'aria-invalid': form.wrong ? 'true' : 'false', 'aria-describedby': 'wrong',
      oninput: (event) => {
        form.text = event.target.value;
        const wrong = notAnObject(form.text);
        // While somebody types, only what was wrong already is said.
        if (form.wrong || !wrong) {
          form.wrong = wrong;
          redraw();
        }
      },
      onblur: () => {
        form.wrong = notAnObject(form.text);
        redraw();
      },
    }))),
    form.typed && h('p', { id: 'wrong', class: 'wrong', role: 'status' }, form.wrong ?? ''),
    h('div', { class: 'field-grid' },
      field('Idempotency key', h('input', { name: 'key', autocomplete: 'off', maxlength: 255, spellcheck: 'false' }), 'The same key is the same job.'),
      field('Priority', h('input', { name: 'priority', type: 'number', min: -100, max: 100, step: 1, placeholder: '0' }), '-100 to 100; the higher goes first.')),
    h('details', { class: 'more-of flat' }, h('summary', {}, 'When'),
      h('div', { class: 'field-grid' },
        field('Delay', h('input', { name: 'delay', placeholder: '10m', autocomplete: 'off' }), 'Not before this time is over.'),
        field('Not before', h('input', { name: 'run_at', type: 'datetime-local', step: 1 }), 'In place of a delay.'),
        field('Timeout', h('input', { name: 'timeout', placeholder: '1h', autocomplete: 'off' }), 'Dead unless it has ended.'),
        field('Deadline', h('input', { name: 'deadline', type: 'datetime-local', step: 1 }), 'In place of a timeout.'))),
    form.refused && problem(form.refused),
    form.receipt && h('p', { class: 'receipt', role: 'status' }, icon('succeeded'), h('span', {},
      form.receipt.existed ? 'This job was there already: ' : 'Accepted: ',
      h('a', { href: href('jobs', form.receipt.id), class: 'mono', onclick: () => close() }, form.receipt.id),
      `, on ${count(form.receipt.copies)} of ${counted(form.receipt.target, 'disk')}${form.receipt.degraded ? ', fewer than it should be' : ''}.`)),
    h('div', { class: 'buttons' },
      h('button', { type: 'button', class: 'button', onclick: () => close() }, 'Close'),
      h('button', { type: 'submit', class: 'button primary', 'aria-busy': form.sending ? 'true' : undefined }, form.receipt ? 'Enqueue another' : 'Enqueue'))));
}

// --------------------------------------------------------------------------------- dead letters

/** How many pipelines are open from the beginning, and how many letters are shown of each. */
const OPEN = 5;
const LETTERS = 20;

export function deadView(ctx) {
  const state = { open: new Map(), pages: new Map(), problems: new Map() };
  const affected = () => ctx.status.pipelines.filter((one) => one.counts === null || one.counts.dead > 0 || state.pages.get(one.name)?.jobs.length > 0);
  const isOpen = (one, at) => state.open.get(one.name) ?? (at < OPEN && one.counts !== null);
  const act = async (id, change, done) => {
    await change(id);
    note(done);
    await ctx.refresh();
  };
  return {
    title: 'Dead letters',
    load: async () => {
      for (const [at, one] of affected().entries()) {
        if (!isOpen(one, at)) continue;
        try {
          state.pages.set(one.name, await api.jobs(one.name, { state: 'dead', limit: LETTERS }));
          state.problems.delete(one.name);
        } catch (error) {
          if (error.unanswered) throw error;
          state.problems.set(one.name, error);
        }
      }
    },
    render: () => {
      const found = affected();
      const all = found.reduce((sum, one) => sum + (one.counts?.dead ?? 0), 0);
      return [
        h('div', { class: 'page-head' }, h('h1', {}, 'Dead letters ', h('span', { class: 'muted' }, count(all)))),
        found.length === 0 && h('p', { class: 'empty good' }, icon('succeeded'), ' No job of any pipeline is dead.'),
        found.map((one, at) => {
          const page = state.pages.get(one.name);
          const known = one.counts?.dead ?? null;
          const of = h('span', { class: 'hidden' }, ` dead letters of ${one.name}`);
          const many = async (how) => (await bulk(how, one.name, 'dead', known)) !== null && ctx.refresh();
          return h('section', { key: one.name, class: 'panel', 'aria-label': `Dead letters of ${one.name}` },
            h('div', { class: 'panel-head' },
              h('h2', {}, pipelineLink(one.name), ' ', h('span', { class: 'muted' }, known === null ? 'not counted at present' : count(known))),
              h('div', { class: 'buttons' },
                button([`Retry ${known === null ? 'all' : count(known)}…`, of], () => many('retry'), { class: 'button small' }),
                button([`Discard ${known === null ? 'all' : count(known)}…`, of], () => many('discard'), { class: 'button small danger' }))),
            h('details', { class: 'more-of flat', open: isOpen(one, at), ontoggle: (event) => {
              if (state.open.get(one.name) === event.target.open) return;
              state.open.set(one.name, event.target.open);
              if (event.target.open && !page) ctx.refresh();
            } },
              h('summary', {}, 'Jobs'),
              state.problems.has(one.name) && problem(state.problems.get(one.name)),
              page ? jobTable(page.jobs, `Dead letters of ${one.name}`, 'None any more.', (job) => [
                  button('Retry', () => act(job.id, (id) => api.retry(id, false), 'It is tried again.'), { class: 'button small', 'aria-label': `Retry job ${job.id}` }),
                  button('Discard', async () => {
                    const sure = await confirm({ title: 'Discard this dead letter?', text: `Job ${job.id} is forgotten. This cannot be undone.`, yes: 'Discard', danger: true });
                    if (sure) await act(job.id, api.discard, 'It is forgotten.');
                  }, { class: 'button small danger', 'aria-label': `Discard job ${job.id}` })])
                : h('p', { class: 'empty' }, 'Loading…'),
              page?.next && h('a', { class: 'more', href: `${href('pipelines', one.name)}?state=dead` }, 'All of them')));
        }),
      ];
    },
  };
}
