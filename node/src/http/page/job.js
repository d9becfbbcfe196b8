// One job: where it stands and why, what ran when, what went in and came out.

import { h } from './dom.js';
import { api } from './api.js';
import {
  ENDED, STATES, badge, between, button, confirm, copyButton, facts, field, href, icon, jobLink, json, jsonText, longText,
  node, note, notAnObject, parts, pipelineLink, problem, time,
} from './ui.js';
import { count, counted, duration, exact, moment, relative } from './format.js';
import { attemptTitle, gantt } from './charts.js';
import { about, graph, phasesOfJob } from './graph.js';
import { choose, fromStart, jobTable, reason } from './pipeline.js';
import { offers } from './overview.js';
import { follow, soon } from './live.js';

const ITEMS = 20;

/** How many nodes are named that lack something. */
const LACKING = 20;

/** How many lines of logs are shown. */
const LINES = 500;

/** What may change what the page shows of a job. */
const CHANGES = 'enqueued,attempt_started,attempt_failed,attempt_lost,phase_succeeded,phase_skipped,phase_failed,phase_cancelled,signalled,retried,succeeded,dead,cancelled';

export function jobView(ctx, id, query) {
  const state = { job: null, explained: null, problem: null, gone: false, definitions: null, items: null, forms: new Map(), log: null };
  const itemState = STATES.includes(query.get('items')) ? query.get('items') : null;
  const itemsAfter = query.get('after');
  const pipeline = () => ctx.status.pipelines.find((one) => one.name === state.job?.pipeline);
  const phases = () => phasesOfJob(state.job, [pipeline()?.definition, ...(state.definitions ?? [])]);
  const link = (change) => {
    const to = new URLSearchParams(Object.entries({ items: itemState, ...change }).filter(([, value]) => value));
    return `${href('jobs', id)}${to.size ? `?${to}` : ''}`;
  };
  const form = (name) => {
    if (!state.forms.has(name)) state.forms.set(name, { text: '{}', wrong: null, refused: null });
    return state.forms.get(name);
  };

  // ------------------------------------------------------------------------------ what it says

  const refreshSoon = soon(() => ctx.refresh(), 300);
  const redrawSoon = soon(() => {
    const before = document.getElementById('log-lines');
    const atEnd = !before || before.scrollTop + before.clientHeight >= before.scrollHeight - 4;
    ctx.redraw();
    const lines = document.getElementById('log-lines');
    if (lines && atEnd) lines.scrollTop = lines.scrollHeight;
  }, 100);

  /** Takes lines that are news; each has a number within its attempt. */
  function hear(lines) {
    const { log } = state;
    for (const line of lines) {
      const from = `${line.job} ${line.phase} ${line.attempt}`;
      const next = log.next.get(from) ?? 0;
      if (!(line.line >= next)) continue;
      log.next.set(from, line.line + (line.count ?? 1));
      log.lines.push({ ...line, key: `${from} ${line.line}` });
    }
    log.lines.splice(0, log.lines.length - LINES);
    redrawSoon();
  }

  /** Reads what is kept of its logs, and follows what comes; once. */
  async function listen() {
    if (state.log || !state.job) return;
    state.log = { lines: [], next: new Map(), stop: () => {} };
    let kept;
    try {
      kept = await api.logs(id);
    } catch {
      // An older node, or nobody coordinates: there is nothing to show, and it is tried again.
      state.log = null;
      return;
    }
    const said = ({ job, phase, attempt, lines }) => lines.map((line) => ({ ...line, job, phase, attempt }));
    hear(kept.attempts.flatMap(said));
    if (state.closed) return;
    state.log.stop = follow(state.job.pipeline, { after: kept.next, job: id, kinds: `log,progress,log_dropped,${CHANGES}` }, (events) => {
      const spoken = (event) => ['log', 'progress', 'log_dropped'].includes(event.kind);
      if (events.some(spoken)) hear(events.filter(spoken));
      if (!events.every(spoken)) refreshSoon();
    });
  }

  /** What the node says of why it waits, and of what each node lacks to run it. */
  async function explain() {
    state.explained = null;
    if (state.job.state !== 'queued') return;
    try {
      state.explained = await api.explain(id);
    } catch (error) {
      if (error.unanswered) throw error;
    }
  }

  /** What each node lacks, folded: a list of nodes can be long. */
  function lacking() {
    const phases = (state.explained?.phases ?? []).filter((one) => (one.nodes ?? []).some((it) => it.lacks?.length));
    return phases.length > 0 && h('details', { class: 'more-of flat', key: 'lacks' }, h('summary', {}, 'What each node lacks'),
      phases.map((one) => h('div', { key: one.step }, h('strong', {}, one.step), h('ul', { class: 'lacks' }, one.nodes.slice(0, LACKING).map((it) =>
        h('li', { key: it.node?.id }, node(it.node), ': ', it.lacks?.length ? it.lacks.join('; ') : 'nothing')), one.nodes.length > LACKING && h('li', {}, `and ${count(one.nodes.length - LACKING)} more`)))));
  }

  function logPanel() {
    const lines = state.log?.lines ?? [];
    if (!lines.length) return null;
    return h('section', { class: 'panel', 'aria-labelledby': 'h-log', key: 'log' },
      h('div', { class: 'panel-head' }, h('h2', { id: 'h-log' }, 'Log'),
        h('span', { class: 'muted' }, lines.length >= LINES ? `the last ${count(LINES)} lines` : counted(lines.length, 'line'))),
      h('div', { id: 'log-lines', class: 'log-lines', role: 'group', tabindex: '0', 'aria-label': 'Lines of the log' }, lines.map((line) =>
        h('div', { key: line.key, class: `log-line${line.level === 'error' || line.level === 'warning' ? ` l-${line.level}` : ''}` },
          h('time', { datetime: line.at, title: exact(moment(line.at)) }, String(line.at).slice(11, 19)), ' ',
          h('span', { class: 'muted' }, `${line.job === id ? '' : 'item '}${line.phase}#${line.attempt}`), ' ',
          line.kind === 'log_dropped' ? h('em', {}, `${counted(line.count ?? 0, 'line')} left out`)
            : [typeof line.done === 'number' && `${Math.round(line.done * 100)} % `, line.text ?? '']))));
  }

  return {
    close: () => {
      state.closed = true;
      state.log?.stop();
    },
    get title() { return state.job ? `${state.job.state} · ${state.job.pipeline} · job` : 'Job'; },
    // What has ended changes only if somebody changes it.
    get interval() { return state.gone || (state.job && ENDED.has(state.job.state)) ? 10_000 : undefined; },
    load: async () => {
      try {
        state.job = await api.job(id);
        state.problem = null;
        state.gone = false;
      } catch (error) {
        if (error.unanswered) throw error;
        state.problem = error;
        state.gone = error.kind === 'unknown-job' || error.status === 400;
        if (state.gone) state.job = null;
        return;
      }
      listen();
      await explain();
      // It may have begun with an earlier definition: these are read once.
      if (state.definitions === null && !phases() && pipeline()) {
        state.definitions = (await api.revisions(state.job.pipeline)).map((one) => one.definition);
      }
      const forItems = phases()?.some((one) => one.for_each) ?? state.job.invocations.some((one) => one.items);
      if (forItems) state.items = await api.jobs(state.job.pipeline, { of: id, state: itemState, after: itemsAfter, limit: ITEMS });
    },
    render: () => {
      const { job } = state;
      if (!job) return [h('h1', {}, h('span', { class: 'kind' }, 'Job'), h('span', { class: 'mono' }, id)), state.problem ? problem(state.problem) : h('p', { class: 'empty' }, 'Loading…')];
      const known = phases();
      const drawn = known ?? job.invocations.map((one) => ({ name: one.step, phase: one.phase, after: [], within: null }));
      const byStep = new Map(job.invocations.map((one) => [one.step, one]));
      const waits = whyItWaits(job, known, pipeline(), ctx.nodes);
      const ended = ENDED.has(job.state);
      const rows = attemptRows(job);
      return [
        h('div', { class: 'page-head' },
          h('h1', {}, h('span', { class: 'kind' }, 'Job'), h('span', { class: 'mono' }, job.id)), copyButton(job.id, 'the job id'),
          badge(job.state),
          h('div', { class: 'buttons' }, changes())),
        state.problem && problem(state.problem),
        waits.length > 0 && h('section', { class: 'callout', 'aria-label': 'Why it waits' }, icon('waiting'), h('div', {}, h('ul', {}, waits.map((text, at) => h('li', { key: at }, text))), lacking())),
        failure(job),
        facts([
          ['Pipeline', pipelineLink(job.pipeline)],
          ['Enqueued', time(job.created_at)],
          ['Ended', job.finished_at && time(job.finished_at)],
          [ended ? 'Took' : 'For', between(job.created_at, ended ? job.finished_at ?? job.created_at : null)],
          ['Not before', job.not_before && time(job.not_before)],
          ['Deadline', job.deadline && time(job.deadline)],
          ['Priority', job.priority !== 0 && job.priority !== undefined && String(job.priority)],
          ['Key', job.key !== null && h('span', { class: 'mono' }, job.key)],
          ['Tried again', job.generation > 0 && `${count(job.generation)} ×`],
          ['Part of', job.parent && [jobLink(job.parent), `, item ${count(job.item ?? 0)}`]],
          ['Undoes', job.compensates && jobLink(job.compensates)],
          ['Undone by', job.compensation && jobLink(job.compensation)],
          ['Conflicts', job.conflicts > 0 && h('span', { title: 'How often a phase finished after another outcome had been accepted' }, count(job.conflicts))],
          ['Other payloads', job.other_payloads > 0 && h('span', { title: 'Enqueued under its key beyond a partition; they do not run' }, count(job.other_payloads))],
        ]),
        waiting(known),
        h('section', { class: 'panel', 'aria-labelledby': 'h-graph' },
          h('div', { class: 'panel-head' }, h('h2', { id: 'h-graph' }, 'Phases'), !known && h('span', { class: 'muted' }, 'what comes after what is not known any more')),
          graph(drawn, {
            label: 'Phases of this job',
            look: (phase) => lookOf(phase, byStep.get(phase.name), known),
            choose: (phase) => choose(`step-${phase.name}`),
          })),
        h('section', { class: 'panel', 'aria-labelledby': 'h-time' },
          h('div', { class: 'panel-head' }, h('h2', { id: 'h-time' }, 'Timeline')),
          gantt(rows, { created: moment(job.created_at), now: Date.now(), finished: moment(job.finished_at), waits: job.state === 'queued' })),
        h('div', { class: 'columns even' },
          data('Instructions', job.instructions, `${job.id} instructions ${job.generation}`),
          data(ended ? 'Result' : 'Result so far', job.result, `${job.id} result ${job.generation} ${job.invocations.map(signature).join()}`, 'The instructions with what the phases gave merged into them')),
        state.items && items(),
        logPanel(),
        h('section', { class: 'panel', 'aria-labelledby': 'h-steps' },
          h('div', { class: 'panel-head' }, h('h2', { id: 'h-steps' }, 'What each phase did')),
          h('div', { class: 'steps' }, job.invocations.map((one) => step(one, drawn.find((phase) => phase.name === one.step))))),
      ];
    },
  };

  // ------------------------------------------------------------------------------------ changes

  function changes() {
    const { job } = state;
    if (job.parent) return null;
    const ended = ENDED.has(job.state);
    return [
      !ended && button('Cancel…', async () => {
        const given = await confirm({ title: 'Cancel this job?', text: 'What runs is asked to stop, and made to after a while.', yes: 'Cancel it', danger: true, fields: reason() });
        if (!given) return;
        await api.cancel(id, given.reason);
        note('It is cancelled.');
        await ctx.refresh();
      }, { class: 'button danger', key: 'cancel' }),
      (job.state === 'dead' || job.state === 'cancelled') && button('Retry…', async () => {
        const only = job.compensation ? 'What it had done is undone, so it can only begin anew.' : '';
        const given = await confirm({ title: 'Try this job again?', text: 'It follows the definition that it began with.', yes: 'Retry', fields: fromStart(only) });
        if (!given) return;
        await api.retry(id, given.from === 'start');
        note('It is tried again.');
        await ctx.refresh();
      }, { class: 'button primary', key: 'retry' }),
      ended && button('Discard…', async () => {
        const sure = await confirm({ title: 'Discard this job?', text: `Job ${id} is forgotten now. This cannot be undone.`, yes: 'Discard', danger: true });
        if (!sure) return;
        await api.discard(id);
        note('It is forgotten.');
        ctx.go(href('pipelines', job.pipeline));
      }, { class: 'button danger', key: 'discard' }),
    ];
  }

  /** Forms for the signals that phases wait for. */
  function waiting(known) {
    const { job } = state;
    if (ENDED.has(job.state)) return null;
    if (!known) {
      return h('details', { class: 'panel more-of' }, h('summary', {}, 'Send a signal'), signalForm(null, 'any'));
    }
    const open = known.filter((one) => one.wait_for && !ENDED.has(job.invocations.find((it) => it.step === one.name)?.state));
    return open.map((one) => {
      const now = isNext(one, job);
      return h('section', { key: one.name, class: 'panel signal', 'aria-label': `Signal ${one.wait_for}` },
        h('div', { class: 'panel-head' }, h('h2', {}, icon('signal'), ' ', now ? 'Waits for signal ' : 'Will wait for signal ', h('strong', {}, one.wait_for)), h('span', { class: 'muted' }, `phase ${one.name}`)),
        now ? signalForm(one.wait_for, one.name) : h('details', { class: 'more-of flat' }, h('summary', {}, 'Send it now already'), signalForm(one.wait_for, one.name)));
    });
  }

  function signalForm(name, key) {
    const it = form(key);
    const send = async (event, fail) => {
      const owner = event.currentTarget.closest('form');
      const signal = name ?? owner.elements.signal.value.trim();
      it.refused = null;
      it.wrong = fail ? (owner.elements.why.value.trim() ? null : 'Say why it fails.') : notAnObject(it.text);
      if (!signal) it.wrong = 'Say which signal.';
      ctx.redraw();
      if (it.wrong) return;
      try {
        if (fail) await api.failSignal(id, signal, owner.elements.why.value.trim());
        else await api.signal(id, signal, it.text);
        note(`Signal ${signal} is given.`);
      } catch (error) {
        it.refused = error;
      }
      await ctx.refresh();
    };
    return h('form', { class: 'inset', onsubmit: (event) => {
      event.preventDefault();
      send({ currentTarget: event.target }, false);
    } },
      !name && field('Signal', h('input', { name: 'signal', autocomplete: 'off' })),
      field('What the phase gives, one JSON object', h('textarea', { name: 'data', rows: 3, spellcheck: 'false', value: '{}', 'aria-invalid': it.wrong ? 'true' : 'false', oninput: (event) => {
        it.text = event.target.value;
        if (it.wrong) ctx.redraw((it.wrong = notAnObject(it.text)));
      } })),
      h('p', { class: 'wrong', role: 'status' }, it.wrong ?? ''),
      it.refused && problem(it.refused),
      h('div', { class: 'buttons' },
        h('button', { type: 'submit', class: 'button primary' }, 'Send signal'),
        h('span', { class: 'or' }, 'or'),
        h('input', { name: 'why', placeholder: 'why it fails', 'aria-label': 'Why it fails', autocomplete: 'off' }),
        button('Fail the job', (event) => send(event, true), { class: 'button danger' })));
  }

  // -------------------------------------------------------------------------------------- parts

  function data(title, value, key, hint) {
    return h('section', { class: 'panel', 'aria-label': title },
      h('div', { class: 'panel-head' }, h('h2', { title: hint }, title), value !== null && value !== undefined && copyButton(() => jsonText(value), title.toLowerCase())),
      value === null || value === undefined ? h('p', { class: 'empty' }, 'None yet.') : json(value, { key, label: title }));
  }

  function items() {
    const { jobs, next } = state.items;
    return h('section', { class: 'panel', 'aria-labelledby': 'h-items' },
      h('div', { class: 'panel-head' }, h('h2', { id: 'h-items' }, 'Jobs of its items'),
        h('nav', { class: 'filters', 'aria-label': 'Items by state' }, [null, ...STATES].map((each) => h('a', { key: each ?? 'all', href: link({ items: each }), 'aria-current': each === itemState ? 'true' : undefined }, each && icon(each), each ?? 'all')))),
      jobTable(jobs ?? [], 'Jobs of its items', itemsAfter ? 'No more.' : 'None.'),
      (itemsAfter || next) && h('div', { class: 'pages' },
        itemsAfter && h('a', { class: 'button small', href: link({}) }, 'First page'),
        next && h('a', { class: 'button small', href: link({ after: next }), rel: 'next' }, 'Next page')));
  }

  function step(one, phase) {
    const shown = standing(one);
    const last = one.attempts.at(-1);
    return h('details', { key: `${one.step} ${state.job.generation}`, id: `step-${one.step}`, class: 'step', opened: one.state === 'dead' || one.state === 'running' || state.job.invocations.length === 1 },
      h('summary', {}, badge(shown), h('strong', {}, one.step),
        h('span', { class: 'muted' }, phase ? about(phase) : one.phase),
        h('span', { class: 'muted end' }, one.items ? itemsText(one.items) : one.attempt_count > 0 && [counted(one.attempt_count, 'attempt'), last && ` · ${between(last.started_at, last.finished_at)}`])),
      h('div', { class: 'step-body' },
        one.note && h('p', { class: 'said' }, one.note),
        one.attempts.length > 0 && h('ol', { class: 'attempts' }, one.attempts.map((attempt) => h('li', { key: attemptKey(one, attempt) },
          h('div', { class: 'line' }, badge(outcome(attempt, one), `#${attempt.number}`), node(attempt.worker),
            h('span', { class: 'muted', title: exact(moment(attempt.started_at)) }, relative(moment(attempt.started_at))),
            h('span', {}, between(attempt.started_at, attempt.finished_at))),
          attempt.error && longText(attempt.error, attemptKey(one, attempt))))),
        one.attempt_count > one.attempts.length && h('p', { class: 'muted' }, `Of ${counted(one.attempt_count, 'attempt')} the last ${count(one.attempts.length)} are kept.`),
        one.result !== null && one.result !== undefined && h('div', {}, h('div', { class: 'line' }, h('h3', {}, 'Result'), copyButton(() => jsonText(one.result), `the result of ${one.step}`)),
          json(one.result, { key: `${one.step} ${signature(one)} ${state.job.generation}`, label: `Result of ${one.step}` }))));
  }
}

/** What names an attempt: its number does not, since a job that is tried again counts anew. */
const attemptKey = (one, attempt) => `${one.step} ${attempt.token ?? attempt.started_at}`;

/** What tells one value of an invocation from the next. */
const signature = (one) => `${one.step}/${one.state}/${one.attempt_count}/${one.attempts.at(-1)?.finished_at ?? ''}`;

const itemsText = (items) => `${count(items.ended)} of ${counted(items.total, 'item')} ended${items.failed ? `, ${count(items.failed)} failed` : ''}`;

/** A phase that was left out succeeded without an attempt, and says so. */
const isSkipped = (one) => one.state === 'succeeded' && one.attempt_count === 0 && /^left out/.test(one.note ?? '');
const standing = (one) => (isSkipped(one) ? 'skipped' : one.state);

function outcome(attempt, invocation) {
  if (!attempt.finished_at) return ENDED.has(invocation.state) ? invocation.state : 'running';
  if (attempt.error) return 'dead';
  return 'succeeded';
}

/** Whether all that a phase comes after is done. */
function isNext(phase, job) {
  const states = new Map(job.invocations.map((one) => [one.step, one.state]));
  const own = states.get(phase.name);
  return own !== undefined && !ENDED.has(own) && phase.after.every((name) => states.get(name) === 'succeeded');
}

function lookOf(phase, one, known) {
  if (!one) return { text: about(phase) };
  const state = standing(one);
  const last = one.attempts.at(-1);
  const text = one.items ? `${count(one.items.ended)}/${count(one.items.total)} items${one.items.failed ? `, ${count(one.items.failed)} failed` : ''}`
    : state === 'skipped' ? 'left out'
      : last ? `${duration((last.finished_at ? moment(last.finished_at) : Date.now()) - moment(last.started_at))}${one.attempt_count > 1 ? ` · attempt ${one.attempt_count}` : ''}`
        : phase.wait_for && !ENDED.has(state) ? `waits for ${phase.wait_for}` : about(phase);
  return { state: known && phase.wait_for && state === 'queued' ? 'waiting' : state, text, note: last?.error ? 'failed' : null };
}

function attemptRows(job) {
  return job.invocations.flatMap((one) => one.attempts.map((attempt) => {
    const state = outcome(attempt, one);
    return {
      key: attemptKey(one, attempt), name: one.step, number: attempt.number,
      start: moment(attempt.started_at), end: attempt.finished_at ? moment(attempt.finished_at) : ENDED.has(one.state) ? moment(job.finished_at) || moment(attempt.started_at) : null,
      state, worker: attempt.worker, title: attemptTitle(one.step, attempt, attempt.error ? attempt.error.slice(0, 500) : state),
    };
  }));
}

/** What a dead or cancelled job died of. */
function failure(job) {
  if (job.state !== 'dead' && job.state !== 'cancelled') return null;
  const found = job.invocations.filter((one) => one.state === job.state);
  const texts = [...new Set(found.map((one) => one.note ?? one.attempts.findLast((attempt) => attempt.error)?.error).filter(Boolean))];
  if (!texts.length) return null;
  const where = found.find((one) => one.note || one.attempts.some((attempt) => attempt.error));
  return h('section', { class: `callout ${job.state === 'dead' ? 'bad' : ''}`, 'aria-label': 'Why it ended' }, icon(job.state),
    h('div', {}, h('strong', {}, `${job.state === 'dead' ? 'Failed' : 'Cancelled'}${where ? ` in ${where.step}` : ''}`), longText(texts[0], `failure ${job.generation}`)));
}

/** Why nothing of it runs at the moment, as far as can be told from here. */
function whyItWaits(job, phases, pipeline, nodes) {
  if (ENDED.has(job.state)) return [];
  const out = [];
  const start = moment(job.not_before);
  if (start > Date.now()) return [['It may not begin before ', time(job.not_before), ` (${exact(start)}).`]];
  if (pipeline && parts(pipeline).every((part) => !part.coordinator)) out.push('Nobody coordinates its pipeline at present.');
  if (pipeline?.paused) out.push(['Its pipeline is paused: ', pipelineLink(pipeline.name), '.']);
  const offered = offers(nodes);
  for (const one of job.invocations) {
    if (one.state !== 'queued') continue;
    const phase = phases?.find((it) => it.name === one.step);
    if (phases ? !phase || !isNext(phase, job) : job.invocations.find((it) => !ENDED.has(it.state)) !== one) continue;
    const name = h('strong', {}, one.step);
    if (phase?.wait_for) {
      out.push([name, ` waits for signal ${phase.wait_for}${phase.timeout ? `, for ${phase.timeout} at most` : ''}.`]);
      continue;
    }
    if (pipeline?.paused_phases.includes(one.step)) out.push([name, ' is paused.']);
    if (phase?.for_each) continue;
    const last = one.attempts.at(-1);
    const found = offered.get(one.phase);
    if (!found) {
      out.push([name, ' has nobody to run it: no node that can be reached offers phase ', h('strong', {}, one.phase), '.']);
      continue;
    }
    if (last?.error) {
      const backoff = phase?.backoff;
      out.push([name, ` failed in attempt ${last.number} of ${count(phase?.max_attempts ?? 3)} and is tried again after a while (${backoff?.initial ?? '1s'} to ${backoff?.max ?? '1m'}).`]);
    } else if (found.busy >= found.slots) {
      out.push([name, ` waits for a slot: all ${count(found.slots)} of phase ${one.phase} are busy.`]);
    }
    if (phase?.rate) out.push([name, ` may be held back by its rate, ${count(phase.rate.count)} per ${phase.rate.per}.`]);
    if (phase?.limit) out.push([name, ` may be held back by its limit, ${count(phase.limit.running)} at once for each ${phase.limit.key}.`]);
  }
  return out;
}
