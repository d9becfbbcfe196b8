// The page: which view is shown, what it is told, and when it asks again.

import { h, patch } from './dom.js';
import { Problem, api, asksWho, token } from './api.js';
import { count, duration } from './format.js';
import { href, icon, node, note, noteProblem, problem } from './ui.js';
import { sample } from './rates.js';
import { nodesView, overview } from './overview.js';
import { deadView, pipelineView } from './pipeline.js';
import { handlersView } from './handlers.js';
import { jobView } from './job.js';
import { login } from './login.js';

/** How often the node is asked, and how seldom at least while it does not answer. */
const EVERY_MS = 2_000;
const SELDOM_MS = 15_000;

const main = document.getElementById('main');
const search = document.getElementById('search');
const searchText = document.getElementById('search-text');

const app = {
  status: null, nodes: [], view: null, failures: 0, lost: null, answered: null, nextAt: 0,
  timer: 0, asking: null, again: false, generation: 0, opened: new Set(),
};

/** What views are given. */
const ctx = {
  get status() { return app.status; },
  get nodes() { return app.nodes; },
  redraw: () => draw(),
  refresh: () => ask(),
  go: (to) => (location.hash = to),
};

// ---------------------------------------------------------------------------------------- routes

function route() {
  const [path, query] = location.hash.replace(/^#\/?/, '').split('?');
  let parts;
  try {
    parts = path.split('/').filter(Boolean).map(decodeURIComponent);
  } catch {
    parts = ['?'];
  }
  const parameters = new URLSearchParams(query ?? '');
  const [kind, name] = parts;
  if (parts.length === 0) return overview(ctx);
  if (kind === 'pipelines' && parts.length === 2) return pipelineView(ctx, name, parameters);
  if (kind === 'jobs' && parts.length === 2) return jobView(ctx, name, parameters);
  if (kind === 'dead' && parts.length === 1) return deadView(ctx);
  if (kind === 'nodes' && parts.length <= 2) return nodesView(ctx, name);
  if (kind === 'handlers' && parts.length === 1) return handlersView(ctx);
  return { title: 'Not found', render: () => [h('h1', {}, 'There is no such page'), h('p', {}, h('a', { href: '#/' }, 'Overview'))] };
}

let place = '';

function navigate() {
  const [path] = location.hash.split('?');
  const moved = path !== place;
  place = path;
  app.view?.close?.();
  app.view = route();
  app.generation += 1;
  app.opened.clear();
  // Another page of the same view keeps what is there until the answer comes.
  if (moved) {
    patch(main, h('p', { class: 'empty' }, 'Loading…'));
    scrollTo(0, 0);
  }
  if (app.status && !app.view.load) draw();
  else drawFrame();
  ask();
  // Keyboards and screen readers begin at what was opened.
  if (moved && app.answered) main.focus({ preventScroll: true });
}

// ---------------------------------------------------------------------------------------- asking

/** Asks the node for all that is shown, now; if it is being asked, once more behind that. */
async function ask() {
  if (app.asking) {
    app.again = true;
    return app.asking;
  }
  app.asking = round();
  try {
    await app.asking;
  } finally {
    app.asking = null;
  }
  if (app.again) {
    app.again = false;
    return ask();
  }
  schedule();
}

async function round() {
  clearTimeout(app.timer);
  const { view } = app;
  const begun = performance.now();
  try {
    const [status, nodes] = await Promise.all([api.status(), api.nodes()]);
    Object.assign(app, { status, nodes });
    sample(status.pipelines);
    await view.load?.();
    if (app.lost) note('The node answers again.');
    Object.assign(app, { failures: 0, lost: null, answered: Date.now() });
  } catch (error) {
    if (!(error instanceof Problem)) console.error(error);
    app.failures += 1;
    app.lost = error;
    // Asked again by itself, a wrong token would soon keep this address from being listened to.
    if (asksWho(error)) token.forget();
  }
  // Large answers are asked for less often, so that reading them leaves time for everything else.
  app.cost = performance.now() - begun;
  if (view === app.view) draw();
}

function schedule() {
  clearTimeout(app.timer);
  if (document.hidden || asksWho(app.lost)) return;
  const usual = Math.max(app.view.interval ?? EVERY_MS, Math.min(30_000, app.cost * 8));
  const retry = Math.max((app.lost?.retryAfter ?? 0) * 1000, Math.min(SELDOM_MS, EVERY_MS * 2 ** (app.failures - 1)));
  const wait = app.lost ? retry : usual;
  app.nextAt = Date.now() + wait;
  app.timer = setTimeout(ask, wait);
  drawFrame();
}

document.addEventListener('visibilitychange', () => {
  if (document.hidden) clearTimeout(app.timer);
  else if (!asksWho(app.lost)) ask();
});
// Between answers only the words of the banner change.
setInterval(() => app.lost && !document.hidden && drawFrame(), 1000);

// --------------------------------------------------------------------------------------- drawing

function draw() {
  drawFrame();
  if (asksWho(app.lost)) {
    patch(main, login(app.lost, ask));
    main.querySelector('input').focus();
    return;
  }
  if (!app.status) {
    patch(main, app.lost
      ? [problem(app.lost), token.get() && h('p', {}, h('button', { type: 'button', class: 'button', onclick: logOut }, 'Log out'))]
      : h('p', { class: 'empty' }, 'Loading…'));
    return;
  }
  try {
    patch(main, app.view.render());
  } catch (error) {
    // A defect of the page must not stop the rest of it.
    console.error(error);
    main.replaceChildren();
    patch(main, problem(error));
  }
  const { generation, view } = app;
  if (!app.opened.has(generation)) {
    app.opened.add(generation);
    view.shown?.();
  }
}

/** Forgets who used this tab, and all that was shown. */
function logOut() {
  token.forget();
  location.reload();
}

function drawFrame() {
  const { status, view, lost } = app;
  const title = view?.title ?? '';
  const wanted = `${lost ? '⚠ ' : ''}${title ? `${title} – ` : ''}CarbonMesh`;
  if (document.title !== wanted) document.title = wanted;
  const dead = status?.pipelines.reduce((sum, one) => sum + (one.counts?.dead || 0), 0);
  const here = location.hash.replace(/^#\/?/, '').split(/[/?]/)[0];
  patch(document.getElementById('nav'), [
    ['', 'Overview'], ['dead', 'Dead letters', dead], ['nodes', 'Nodes'], ['handlers', 'Handlers'],
  ].map(([to, text, number]) => h('a', { key: to, href: `#/${to}`, 'aria-current': here === to ? 'page' : undefined },
    text, number > 0 && h('span', { class: 'pill' }, count(number)))));
  patch(document.getElementById('pulse'), status && h('span', { class: `pulse ${lost ? 'lost' : ''}`, title: `This page asks node ${status.node?.name ?? status.node?.id ?? ''}, version ${status.version}` },
    h('span', { class: 'dot', 'aria-hidden': 'true' }), node(status.node), h('span', { class: 'muted' }, status.version),
    token.get() && h('button', { type: 'button', class: 'button small', onclick: logOut }, 'Log out')));
  // The part that is read aloud is said once; what counts down is not.
  const said = lost ? lost.detail ? `${lost.title}: ${lost.detail}` : lost.title : '';
  const banner = document.getElementById('banner');
  document.body.classList.toggle('is-lost', Boolean(lost && status));
  if (asksWho(lost)) return void patch(banner, null);
  const left = Math.max(0, Math.round((app.nextAt - Date.now()) / 1000));
  patch(banner, lost && h('div', { class: 'banner' }, icon('warning'), h('strong', {}, said),
    h('span', { 'aria-hidden': 'true' },
      app.answered ? ` What is shown is ${duration(Date.now() - app.answered)} old. ` : ' ',
      app.asking ? 'Asking…' : `Next try in ${left} s.`),
    h('button', { type: 'button', class: 'button small', onclick: () => ask() }, 'Try now')));
  const names = status?.pipelines.map((one) => one.name) ?? [];
  patch(document.getElementById('search-names'), names.slice(0, 500).map((name) => h('option', { key: name, value: name })));
}

// ------------------------------------------------------------------------- search and the keyboard

const ID = /^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$/i;

search.addEventListener('submit', (event) => {
  event.preventDefault();
  const text = searchText.value.trim();
  if (!text) return;
  const names = app.status?.pipelines.map((one) => one.name) ?? [];
  const lower = text.toLowerCase();
  const begins = names.filter((name) => name.toLowerCase().startsWith(lower));
  const found = names.find((name) => name === text) ?? (begins.length === 1 ? begins[0] : null);
  const machine = app.nodes.find((one) => one.name === text || one.id === lower);
  if (ID.test(text)) ctx.go(href('jobs', lower));
  else if (found) ctx.go(href('pipelines', found));
  else if (machine) ctx.go(href('nodes', machine.id));
  else {
    const detail = begins.length > 1 ? `${count(begins.length)} pipelines begin with “${text.slice(0, 60)}”.` : `“${text.slice(0, 60)}” is no job id, and no pipeline or node has this name.`;
    noteProblem(new Problem('Nothing to go to', detail));
    return;
  }
  searchText.value = '';
  searchText.blur();
});

document.getElementById('skip').addEventListener('click', (event) => {
  // The part of the address behind # says which view is shown.
  event.preventDefault();
  main.focus();
});

document.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  const typing = event.target.closest?.('input, textarea, select, dialog');
  if (event.key === 'Escape' && event.target === searchText) return searchText.blur();
  if (typing) return;
  if (event.key === '/') {
    event.preventDefault();
    searchText.focus();
    searchText.select();
  } else if (event.key === 'j' || event.key === 'k') {
    const rows = [...document.querySelectorAll('.rows > tr')].map((row) => row.querySelector('a')).filter(Boolean);
    const now = rows.findIndex((link) => link.closest('tr').contains(document.activeElement));
    const next = rows[now < 0 ? 0 : Math.min(rows.length - 1, Math.max(0, now + (event.key === 'j' ? 1 : -1)))];
    next?.focus();
  }
});

addEventListener('hashchange', navigate);
navigate();
