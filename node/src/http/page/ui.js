// What all views are built of: states, times, tables, JSON, dialogs, notes.

import { h, patch } from './dom.js';
import { Problem, Spelled, spelled } from './api.js';
import { bytes, count, counted, duration, exact, moment, nodeName, relative, short } from './format.js';

export const STATES = ['queued', 'running', 'succeeded', 'dead', 'cancelled'];
export const ENDED = new Set(['succeeded', 'dead', 'cancelled']);

const SHAPES = {
  queued: 'M8 2a6 6 0 1 0 0 12A6 6 0 0 0 8 2M8 5v3.5l2.3 1.4',
  running: 'M5 3.2v9.6L12.8 8z',
  succeeded: 'M2.8 8.6l3.4 3.4 7-7.6',
  dead: 'M3.6 3.6l8.8 8.8M12.4 3.6l-8.8 8.8',
  cancelled: 'M8 2a6 6 0 1 0 0 12A6 6 0 0 0 8 2M3.8 3.8l8.4 8.4',
  skipped: 'M2 10.5C3 5.5 9 4 12.6 8.6M13 4.6v4.4H8.6',
  waiting: 'M4.2 2.2h7.6l-7.6 11.6h7.6z',
  paused: 'M5 3v10M11 3v10',
  warning: 'M8 2.2 14.4 13.6H1.6zM8 6.6v3.2M8 11.6v.4',
  alive: 'M2.8 8.6l3.4 3.4 7-7.6',
  suspect: 'M5.2 6a2.8 2.8 0 1 1 4.2 2.4C8.4 9 8 9.4 8 10.6M8 13v.4',
  down: 'M3.6 3.6l8.8 8.8M12.4 3.6l-8.8 8.8',
  retired: 'M2.5 8h11',
  undo: 'M3 6.2h6.4a3.6 3.6 0 0 1 0 7.2H5M6 3 2.8 6.2 6 9.4',
  copy: 'M5.5 5.5v-3h8v8h-3M2.5 5.5h8v8h-8z',
  each: 'M2.5 5.5h8v8h-8zM5 5V3h8.5v8.5H11',
  signal: 'M8 8v5M5.6 5.8a3.4 3.4 0 0 1 4.8 0M3.4 3.6a6.5 6.5 0 0 1 9.2 0',
  when: 'M8 2l6 6-6 6-6-6z',
};

/** A small drawing beside text; never the only sign of anything. */
export function icon(name) {
  return h('svg', { class: `icon i-${name}`, viewBox: '0 0 16 16', 'aria-hidden': 'true' },
    h('path', { d: SHAPES[name] ?? SHAPES.queued }));
}

/** The path of an icon, for drawings. */
export const shape = (name) => SHAPES[name] ?? SHAPES.queued;

export function badge(state, text = state) {
  return h('span', { class: `badge s-${SHAPES[state] ? state : 'queued'}` }, icon(state), text);
}

/** A moment as the cluster gives it: how long ago, with the exact time as its title. */
export function time(text) {
  const ms = moment(text);
  if (Number.isNaN(ms)) return h('span', { class: 'muted' }, '–');
  return h('time', { datetime: text, title: exact(ms) }, relative(ms));
}

export function between(from, to) {
  return duration((to ? moment(to) : Date.now()) - moment(from));
}

export function node(one) {
  return h('span', { class: 'node', title: one?.id ?? '' }, nodeName(one));
}

/** `#/…` with each part escaped. */
/** What of a pipeline has a coordinator of its own: its partitions, or itself if it is not split. */
export const parts = (pipeline) => (pipeline.partitions?.length ? pipeline.partitions : [pipeline]);

export function href(...parts) {
  return `#/${parts.map(encodeURIComponent).join('/')}`;
}

export function jobLink(id) {
  return h('a', { href: href('jobs', id), class: 'mono' }, String(id));
}

export function pipelineLink(name) {
  return h('a', { href: href('pipelines', name) }, short(name, 64));
}

/** A number in a table, where nothing is to be seen if there is none. */
export const cellCount = (value) => (value ? count(value) : h('span', { class: 'muted' }, count(value)));

/** Of so many slots so many are busy. */
export function slots(busy, all, name) {
  const part = all > 0 ? Math.min(1, busy / all) : 0;
  return h('span', { class: 'slots', title: `${name ? `${name}: ` : ''}${busy} of ${all} slots busy` },
    name && h('span', { class: 'slots-name' }, name),
    h('span', { class: 'bar', 'aria-hidden': 'true' },
      h('span', { class: `fill${part >= 1 ? ' full' : ''}`, style: { width: `${(part * 100).toFixed(1)}%` } })),
    h('span', { class: 'num' }, `${count(busy)}/${count(all)}`));
}

/**
 * A table. Columns: `{ name, label, cell(row), num, minor }`; minor ones are left out on narrow
 * screens. `sort` is `{ by, down, set }`.
 */
export function table({ label, columns, rows, key, sort, empty, rowProps }) {
  if (!rows.length) return h('p', { class: 'empty' }, empty ?? 'Nothing here.');
  const head = columns.map((column) => {
    const kind = `${column.num ? 'num' : ''}${column.minor ? ' minor' : ''}${column.least ? ' least' : ''}`;
    if (!sort || !column.order) {
      return h('th', { scope: 'col', class: kind },
        column.label || h('span', { class: 'hidden' }, column.hint ?? 'Actions'));
    }
    const on = sort.by === column.name;
    return h('th', { scope: 'col', class: kind, 'aria-sort': on ? (sort.down ? 'descending' : 'ascending') : undefined },
      h('button', { type: 'button', class: 'sort', onclick: () => sort.set(column.name, on ? !sort.down : Boolean(column.num)) },
        column.label, h('span', { 'aria-hidden': 'true', class: 'arrow' }, on ? (sort.down ? '↓' : '↑') : '')));
  });
  return h('div', { class: 'scroll', role: 'group', 'aria-label': label, tabindex: '0' },
    h('table', { 'aria-label': label },
      h('thead', {}, h('tr', {}, head)),
      h('tbody', { class: 'rows' }, rows.map((row) =>
        h('tr', { key: key(row), ...rowProps?.(row) }, columns.map((column) =>
          h('td', { class: `${column.num ? 'num' : ''}${column.minor ? ' minor' : ''}${column.least ? ' least' : ''}${column.kind ? ` ${column.kind}` : ''}` },
            column.cell(row))))))));
}

/** Names and values; what has no value is left out. */
export function facts(rows) {
  return h('dl', { class: 'facts' }, rows.filter(([, value]) => value !== null && value !== undefined && value !== false)
    .map(([name, value]) => h('div', { key: name }, h('dt', {}, name), h('dd', {}, value))));
}

export function button(text, onclick, props = {}) {
  return h('button', { type: 'button', class: 'button', ...props, onclick: guarded(onclick) }, text);
}

/** Runs what a button does once at a time; what goes wrong is shown. */
function guarded(act) {
  return async (event) => {
    const target = event.currentTarget;
    if (target.getAttribute('aria-busy') === 'true') return;
    target.setAttribute('aria-busy', 'true');
    try {
      await act(event);
    } catch (error) {
      noteProblem(error);
    } finally {
      target.removeAttribute('aria-busy');
    }
  };
}

export function copyButton(text, what) {
  if (!navigator.clipboard) return null;
  return h('button', {
    type: 'button', class: 'quiet', title: `Copy ${what}`, 'aria-label': `Copy ${what}`,
    onclick: guarded(async () => {
      await navigator.clipboard.writeText(typeof text === 'function' ? text() : text);
      note(`Copied ${what}.`);
    }),
  }, icon('copy'));
}

/** A refusal, or what went wrong, in full. */
export function problem(error) {
  const known = error instanceof Problem;
  if (!known) console.error(error);
  return h('div', { class: 'problem', role: 'alert' }, icon('warning'),
    h('div', {},
      h('strong', {}, known ? error.title : 'The page has failed'),
      h('div', {}, known ? error.detail : String(error?.message ?? error)),
      known && error.at && h('div', {}, h('a', { href: href('jobs', error.at) }, 'Show that job'))));
}

// ---------------------------------------------------------------------------------------- notes

let notes = [];
let noted = 0;

/** Says something in passing. */
export function note(text, { kind = 'done', stay = 6000 } = {}) {
  const one = { id: (noted += 1), text, kind };
  notes = [...notes.slice(-3), one];
  drawNotes();
  setTimeout(() => dismiss(one.id), stay);
}

export function noteProblem(error) {
  if (!(error instanceof Problem)) console.error(error);
  note(error instanceof Problem ? [h('strong', {}, error.title), error.detail && ` – ${error.detail}`] : `The page has failed: ${error?.message ?? error}`,
    { kind: 'failed', stay: 20_000 });
}

function dismiss(id) {
  notes = notes.filter((one) => one.id !== id);
  drawNotes();
}

function drawNotes() {
  patch(document.getElementById('notes'), notes.map((one) =>
    h('div', { key: one.id, class: `note ${one.kind}` },
      icon(one.kind === 'failed' ? 'warning' : 'succeeded'), h('span', {}, one.text),
      h('button', { type: 'button', class: 'quiet', 'aria-label': 'Dismiss', onclick: () => dismiss(one.id) }, '×'))));
}

// -------------------------------------------------------------------------------------- dialogs

/**
 * Opens a modal dialog; `render({ close, redraw })` gives what is in it, `begin` is called once it is
 * open. Resolves with what it is closed with.
 */
export function dialog(title, render, begin) {
  return new Promise((resolve) => {
    const element = document.createElement('dialog');
    element.setAttribute('aria-labelledby', 'dialog-title');
    let result;
    const close = (value) => {
      result = value;
      element.close();
    };
    const redraw = () => patch(element, [
      h('h2', { id: 'dialog-title' }, title),
      h('div', { class: 'dialog-body' }, render({ close, redraw })),
    ]);
    element.addEventListener('close', () => {
      element.remove();
      resolve(result);
    });
    // A click beside it closes it, unless something was typed there.
    element.addEventListener('mousedown', (event) => {
      if (event.target === element && !element.querySelector('form')) close();
    });
    document.body.append(element);
    redraw();
    element.showModal();
    begin?.({ close, redraw });
  });
}

/** Asks before something is done; `fields` may ask for more, and what was given is the answer. */
export function confirm({ title, text, yes, danger, fields }) {
  return dialog(title, ({ close }) => h('form', {
    method: 'dialog',
    onsubmit: (event) => {
      event.preventDefault();
      close(Object.fromEntries(new FormData(event.target)));
    },
  },
    h('p', {}, text),
    fields,
    h('div', { class: 'buttons' },
      h('button', { type: 'button', class: 'button', onclick: () => close() }, 'Back'),
      h('button', { type: 'submit', class: `button ${danger ? 'danger' : 'primary'}` }, yes))));
}

export function field(label, control, hint) {
  return h('label', { class: 'field' }, h('span', { class: 'label' }, label), control, hint && h('span', { class: 'hint' }, hint));
}

/** Does `step(after)` page by page, after asking; `step` gives `{ changed, next }`. */
export async function changeAll({ title, known, what, verb, done, danger, step, fields }) {
  const given = await confirm({
    title, danger, fields,
    text: known === null
      ? `All ${what} will be ${done}. How many there are is not known at present.`
      : `${counted(known, ...what)} will be ${done}${danger ? '. This cannot be undone' : ''}.`,
    yes: known === null ? `${verb} all` : `${verb} ${count(known)}`,
  });
  if (!given) return null;
  let changed = 0;
  let running = true;
  let failure = null;
  await dialog(title, ({ close }) => [
    h('p', { role: 'status' }, `${counted(changed, 'job')} ${done}${failure ? '; then it was refused.' : ' so far…'}`),
    failure && problem(failure),
    h('div', { class: 'buttons' },
      h('button', { type: 'button', class: 'button', onclick: () => close() }, failure ? 'Close' : 'Stop')),
  ], async ({ close, redraw }) => {
    try {
      for (let after; running;) {
        const page = await step(after, given);
        changed += Number(page.changed) || 0;
        after = page.next;
        if (!after) break;
        redraw();
      }
      close();
    } catch (error) {
      failure = error;
      redraw();
    }
  });
  running = false;
  note(`${counted(changed, 'job')} ${done}.${!failure && known !== null && changed < known ? ' Those that it does not fit stay as they are.' : ''}`);
  return changed;
}

// ----------------------------------------------------------------------------------------- JSON

const TEXT_SHOWN = 1000;
const TEXT_MORE = 200_000;
const PARTS_SHOWN = 50;
const PARTS_MORE = 500;
const LINE = 72;

/**
 * JSON, folded. `key` says which value this is: the view is made anew when it changes, and stays
 * as it was opened otherwise. What is inside a fold is made when it is opened.
 */
export function json(value, { key, label, open = true }) {
  return h('div', { class: 'json', key: `json ${key}`, role: 'group', 'aria-label': label, init: (element) => {
    element.append(jsonNode(value, null, open));
  } });
}

/** The same text as was sent, but for white space. */
export const jsonText = (value, indent = 2) => JSON.stringify(value, spelled, indent);

function element(tag, kind, ...children) {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  made.append(...children);
  return made;
}

const isContainer = (value) => value !== null && typeof value === 'object' && !(value instanceof Spelled);

/** The value on one line, if that is short. */
function oneLine(value) {
  let budget = 40;
  const small = (one) => {
    if ((budget -= 1) < 0) return false;
    if (typeof one === 'string') return one.length <= LINE;
    if (!isContainer(one)) return true;
    return Object.values(one).every(small);
  };
  if (!small(value)) return null;
  const text = jsonText(value, 1).replace(/\n\s*/g, ' ');
  return text.length <= LINE ? text : null;
}

function jsonNode(value, name, open) {
  const label = name === null ? [] : [element('span', 'j-key', typeof name === 'number' ? String(name) : JSON.stringify(name)), ': '];
  if (!isContainer(value)) return element('div', 'j-row', ...label, scalar(value));
  const line = oneLine(value);
  if (line !== null) return element('div', 'j-row', ...label, element('span', 'j-line', line));
  const isList = Array.isArray(value);
  const keys = isList ? null : Object.keys(value);
  const size = isList ? value.length : keys.length;
  const fold = element('details', 'j-fold',
    element('summary', '', ...label, element('span', 'j-size', isList ? `[ ${counted(size, 'item')} ]` : `{ ${counted(size, 'key')} }`)));
  const fill = () => {
    if (fold.childElementCount > 1) return;
    const body = element('div', 'j-body');
    fold.append(body);
    more(body, 0);
  };
  const more = (body, from) => {
    const to = Math.min(size, from + (from ? PARTS_MORE : PARTS_SHOWN));
    for (let at = from; at < to; at += 1) {
      body.append(isList ? jsonNode(value[at], at, false) : jsonNode(value[keys[at]], keys[at], false));
    }
    if (to < size) body.append(moreButton(size - to <= PARTS_MORE ? `Show all: ${count(size - to)} more` : `Show ${count(PARTS_MORE)} of ${count(size - to)} more`, () => more(body, to)));
  };
  fold.addEventListener('toggle', () => fold.open && fill());
  if (open) {
    fill();
    fold.open = true;
  }
  return fold;
}

function scalar(value) {
  if (typeof value !== 'string') {
    return element('span', value === null ? 'j-null' : 'j-num', value instanceof Spelled ? value.text : String(value));
  }
  const out = element('span', 'j-text');
  const more = (from) => {
    const rest = value.length - from;
    const take = from ? TEXT_MORE : TEXT_SHOWN;
    const last = rest <= take * (from ? 1 : 1.2);
    out.append(JSON.stringify(last ? value.slice(from) : value.slice(from, from + take)).slice(from ? 1 : 0, last ? undefined : -1));
    if (!last) {
      const left = rest - take;
      out.append(element('span', 'j-null', '… '), moreButton(left <= TEXT_MORE ? `Show all (${bytes(value.length)})` : `Show ${bytes(TEXT_MORE)} more of ${bytes(value.length)}`, (button) => {
        button.previousSibling.remove();
        more(from + take);
      }));
    }
  };
  more(0);
  return out;
}

function moreButton(text, act) {
  const made = element('button', 'j-more', text);
  made.type = 'button';
  made.addEventListener('click', () => {
    const parent = made.parentNode;
    act(made);
    made.remove();
    parent.querySelector(':scope > .j-more')?.focus();
  });
  return made;
}

/** Long text, cut with a way to see all of it. */
export function longText(text, key) {
  const whole = String(text);
  return h('div', { class: 'log', key: `log ${key} ${whole.length}`, init: (holder) => {
    const most = 2000;
    if (whole.length <= most * 1.2) return holder.append(whole);
    // It may become much longer than the window: it scrolls by itself, and can be reached.
    holder.tabIndex = 0;
    holder.role = 'group';
    holder.ariaLabel = 'Text in full';
    holder.append(whole.slice(0, most), element('span', 'j-null', '… '));
    holder.append(moreButton(`Show all (${bytes(whole.length)})`, (made) => {
      made.previousSibling.remove();
      holder.append(whole.slice(most));
    }));
  } });
}

/** Checks what a person typed as a job or a signal: one JSON object. Null if it is one. */
export function notAnObject(text) {
  let value;
  try {
    value = JSON.parse(text);
  } catch (error) {
    return `No JSON: ${error.message.replace(/^JSON\.parse: /, '')}`;
  }
  if (value === null || typeof value !== 'object' || Array.isArray(value)) return 'This has to be one JSON object, such as {"size": 3}.';
  return null;
}
