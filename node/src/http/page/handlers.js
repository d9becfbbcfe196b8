// The handlers that the cluster keeps: what each is, and who runs it.

import { h } from './dom.js';
import { api } from './api.js';
import { button, copyButton, dialog, facts, href, longText, problem, table, time } from './ui.js';
import { bytes, count, nodeName, short } from './format.js';
import { offers } from './overview.js';

/** How many nodes are named in a row, and how many digits of a hash. */
const NAMED = 5;
const DIGITS = 12;

export function handlersView(ctx) {
  const state = { handlers: null, problem: null, filter: '' };

  /** Shows the source of a handler, and what it was before. */
  async function show(one) {
    const whole = await api.handler(one.phase);
    await dialog(`Handler of ${short(one.phase, 60)}`, ({ close }) => [
      facts([
        ['Language', whole.language],
        ['Size', bytes(whole.bytes ?? 0)],
        ['SHA-256', h('span', { class: 'mono small' }, whole.sha256)],
      ]),
      h('div', { class: 'line' }, h('h3', {}, whole.language === 'wasm' ? 'Module, in Base64' : 'Source'), copyButton(() => whole.source ?? '', 'the source')),
      longText(whole.source ?? '', `source ${whole.sha256}`),
      h('h3', {}, 'Sources that it has and had'),
      h('ul', { class: 'versions' }, (whole.versions ?? []).map((version) => h('li', { key: version.change },
        `change ${count(version.change)}, `, time(version.put_at), ' ', h('span', { class: 'mono small' }, String(version.sha256).slice(0, DIGITS))))),
      h('div', { class: 'buttons' }, h('button', { type: 'button', class: 'button', onclick: () => close() }, 'Close')),
    ]);
  }

  return {
    title: 'Handlers',
    load: async () => {
      try {
        state.handlers = await api.handlers();
        state.problem = null;
      } catch (error) {
        if (error.unanswered) throw error;
        state.problem = error;
      }
    },
    render: () => {
      const all = state.handlers ?? [];
      const text = state.filter.trim().toLowerCase();
      const found = all.filter((one) => [one.phase, one.language, one.sha256].some((part) => String(part).toLowerCase().includes(text)));
      const offered = offers(ctx.nodes);
      return [
        h('div', { class: 'page-head' }, h('h1', {}, 'Handlers ', h('span', { class: 'muted' }, count(all.length))),
          all.length > 8 && h('input', { type: 'search', class: 'filter', placeholder: 'Phase, language or hash', 'aria-label': 'Filter handlers by phase, language or hash', oninput: (event) => ctx.redraw((state.filter = event.target.value)) })),
        state.problem && problem(state.problem),
        state.handlers && h('section', { class: 'panel', 'aria-labelledby': 'h-handlers' },
          h('div', { class: 'panel-head' }, h('h2', { id: 'h-handlers' }, 'Kept by the cluster'), h('span', { class: 'muted' }, 'run by the nodes whose operators allow the language')),
          table({
            label: 'Handlers', rows: found, key: (one) => one.phase,
            empty: all.length ? 'No handler fits.' : ['The cluster keeps no handler. ', h('code', {}, 'carbonmesh handler put FILE --phase PHASE'), ' gives it one.'],
            columns: [
              { label: 'Phase', cell: (one) => h('strong', {}, short(one.phase, 48)) },
              { label: 'Language', cell: (one) => one.language },
              { label: 'Run by', cell: (one) => {
                const nodes = offered.get(one.phase)?.nodes ?? [];
                if (!nodes.length) return h('span', { class: 'bad-text' }, 'nobody');
                return [nodes.slice(0, NAMED).map((each, at) => [at ? ', ' : '', h('a', { href: href('nodes', each.id) }, short(nodeName(each), 32))]), nodes.length > NAMED && ` and ${count(nodes.length - NAMED)} more`];
              } },
              { label: 'Requires', minor: true, cell: (one) => (one.requires ?? []).map((each) => h('span', { key: each, class: 'tag' }, each)) },
              { label: 'Slots', minor: true, num: true, cell: (one) => count(one.slots) },
              { label: 'Size', minor: true, num: true, cell: (one) => bytes(one.bytes ?? 0) },
              { label: 'SHA-256', minor: true, cell: (one) => h('span', { class: 'mono', title: one.sha256 }, String(one.sha256).slice(0, DIGITS)) },
              { label: 'Put', minor: true, cell: (one) => time(one.versions?.[0]?.put_at) },
              { label: '', kind: 'acts', cell: (one) => button('Source…', () => show(one), { class: 'button small', 'aria-label': `Source of ${one.phase}` }) },
            ],
          })),
      ];
    },
  };
}
