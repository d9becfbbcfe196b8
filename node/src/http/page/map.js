// Who is connected to whom, as each node tells it; and who coordinates what, in which term.

import { h } from './dom.js';
import { api } from './api.js';
import { badge, button, href, parts, pipelineLink, problem, shape, table } from './ui.js';
import { count, counted, nodeName, short } from './format.js';

/** Nodes try to reach each other when they are asked: that is not done all the time. */
const FRESH_MS = 30_000;

/** With more nodes the drawing would be a tangle; and how much is named in a row. */
const DRAWN = 40;
const NAMED = 6;

const RADIUS = 17;
const list = (value) => (Array.isArray(value) ? value : []);

/** What each node says of its way to each other one: `Map` of ids to `Map`s of ids. */
function said(document) {
  const all = [document.asked, ...list(document.others).map((one) => one.facts)].filter(Boolean);
  return new Map(all.map((one) => [one.id, new Map(list(one.reach).map((way) => [way.id, way]))]));
}

/** The state of the way between two: `joined`, `half` (one says so, the other not), `apart`, or null. */
function between(ways, one, other) {
  const told = [ways.get(one)?.get(other), ways.get(other)?.get(one)].filter(Boolean);
  if (!told.length) return null;
  const joined = told.filter((way) => way.connected).length;
  return joined === told.length ? 'joined' : joined ? 'half' : 'apart';
}

/** Whether none of the addresses that a node tried could be opened. */
const isClosed = (way) => list(way.tried).length > 0 && list(way.tried).every((one) => one.error);

const WORDS = { joined: 'connected', half: 'connected as only one of both says', apart: 'not connected' };

/** The map of the nodes: `load` and `render`, for a view. */
export function nodeMap(ctx) {
  const state = { document: null, problem: null, at: -Infinity, asking: false };

  // What takes long does not keep the rest of the view from being refreshed.
  async function ask() {
    state.asking = true;
    try {
      state.document = await api.facts();
      state.problem = null;
    } catch (error) {
      state.problem = error;
    }
    Object.assign(state, { asking: false, at: performance.now() });
    ctx.redraw();
  }
  const again = () => {
    if (!state.asking) ask();
    ctx.redraw();
  };

  return {
    load: () => {
      if (!state.asking && performance.now() - state.at > FRESH_MS) ask();
    },
    render: () => {
      const nodes = [...ctx.nodes].filter((one) => one.liveness !== 'retired')
        .sort((one, other) => nodeName(one).localeCompare(nodeName(other)) || String(one.id).localeCompare(String(other.id)));
      const ways = state.document ? said(state.document) : new Map();
      const leads = new Map();
      for (const one of ctx.status.pipelines) {
        const ids = new Set(parts(one).map((part) => part.coordinator?.id).filter(Boolean));
        for (const id of ids) leads.set(id, [...(leads.get(id) ?? []), one]);
      }
      return h('section', { class: 'panel', 'aria-labelledby': 'h-map' },
        h('div', { class: 'panel-head' },
          h('h2', { id: 'h-map' }, 'Who is connected to whom'),
          h('span', { class: 'muted', role: 'status' }, state.asking ? 'the nodes are being asked…' : ''),
          h('div', { class: 'buttons' }, button('Ask again', again, { class: 'button small' }))),
        state.problem && (state.problem.status === 403
          ? h('p', { class: 'empty' }, 'What the nodes find out about each other is told to administrators.')
          : h('div', { class: 'inset' }, problem(state.problem))),
        nodes.length > DRAWN ? h('p', { class: 'empty' }, `With more than ${count(DRAWN)} nodes there is no drawing; the table has all of it.`)
          : nodes.length > 1 && state.document && drawing(nodes, ways, leads),
        connections(nodes, ways, leads));
    },
  };
}

function drawing(nodes, ways, leads) {
  const ring = Math.max(78, nodes.length * 13);
  const [middleX, middleY] = [ring + 165, ring + 62];
  const places = nodes.map((one, at) => {
    const angle = (at / nodes.length) * 2 * Math.PI - Math.PI / 2;
    return { one, x: middleX + ring * Math.cos(angle), y: middleY + ring * Math.sin(angle) };
  });
  const lines = [];
  places.forEach((from, at) => places.slice(at + 1).forEach((to) => {
    const how = between(ways, from.one.id, to.one.id);
    if (how) lines.push({ how, from, to, key: `${from.one.id} ${to.one.id}` });
  }));
  const [width, height] = [middleX * 2, middleY * 2];
  return [
    h('div', { class: 'scroll graph map', role: 'group', 'aria-label': 'Map of the nodes; the table below says the same in words', tabindex: '0' },
      h('svg', { width, height, viewBox: `0 0 ${width} ${height}`, role: 'presentation' },
        lines.map(({ how, from, to, key }) => h('line', { key, class: `way w-${how}`, x1: from.x.toFixed(1), y1: from.y.toFixed(1), x2: to.x.toFixed(1), y2: to.y.toFixed(1) },
          h('title', {}, `${nodeName(from.one)} and ${nodeName(to.one)}: ${WORDS[how]}`))),
        places.map(({ one, x, y }) => {
          const lead = leads.get(one.id) ?? [];
          const name = short(nodeName(one), 16);
          const text = lead.length ? `coordinates ${lead.length === 1 ? short(lead[0].name, 14) : count(lead.length)}` : '';
          const label = [name, text, name !== nodeName(one) && nodeName(one), one.liveness, ...lead.slice(0, NAMED).map((it) => `${it.name} in term ${count(it.term)}`)].filter(Boolean).join(', ');
          // Beside the circle on the side where there is room.
          const side = Math.abs(x - middleX) < 20 ? 0 : Math.sign(x - middleX);
          const anchor = { '-1': 'end', 0: 'middle', 1: 'start' }[side];
          const textX = x + side * (RADIUS + 7);
          // Of two lines the upper one is the name; without the second it is in the middle, or nearer.
          const nameY = side ? y + (text ? -2 : 4) : y > middleY ? y + RADIUS + 16 : y - RADIUS - (text ? 22 : 8);
          return h('a', { key: one.id, class: `machine p-${STATE[one.liveness] ?? 'plain'}`, href: href('nodes', one.id), 'aria-label': label },
            h('title', {}, label.replaceAll(', ', '\n')),
            h('circle', { class: 'box', cx: x.toFixed(1), cy: y.toFixed(1), r: RADIUS }),
            h('path', { class: 'sign', d: shape(one.liveness), transform: `translate(${(x - 8).toFixed(1)} ${(y - 8).toFixed(1)})` }),
            h('text', { class: 'name', 'text-anchor': anchor, x: textX.toFixed(1), y: nameY.toFixed(1) }, name),
            text && ' ',
            text && h('text', { class: 'text', 'text-anchor': anchor, x: textX.toFixed(1), y: (nameY + 14).toFixed(1) }, text));
        }))),
    h('p', { class: 'muted inset' }, 'A line: connected. A dashed line: only one of both says so. A dotted red line: not connected.'),
  ];
}

/** How what a node is looks on the map. */
const STATE = { alive: 'succeeded', suspect: 'waiting', down: 'dead' };

function connections(nodes, ways, leads) {
  const names = new Map(nodes.map((one) => [one.id, nodeName(one)]));
  const named = (ids) => [ids.slice(0, NAMED).map((id, at) => [at ? ', ' : '', h('a', { href: href('nodes', id) }, short(names.get(id), 32))]), ids.length > NAMED && ` and ${count(ids.length - NAMED)} more`];
  const nothing = h('span', { class: 'muted' }, '–');
  return table({
    label: 'Connections and coordinators', rows: nodes, key: (one) => one.id, empty: 'No nodes.',
    columns: [
      { label: 'Node', cell: (one) => h('a', { href: href('nodes', one.id) }, short(nodeName(one), 40)) },
      { label: 'State', minor: true, cell: (one) => badge(one.liveness) },
      { label: 'Connected to', cell: (one) => {
        const others = nodes.filter((other) => other.id !== one.id && between(ways, one.id, other.id) === 'joined').map((other) => other.id);
        if (!ways.has(one.id) && !others.length) return h('span', { class: 'muted' }, 'it does not tell');
        return others.length === nodes.length - 1 && others.length > 2 ? `all ${count(others.length)} others` : others.length ? named(others) : nothing;
      } },
      { label: 'Not connected to', cell: (one) => {
        const others = nodes.filter((other) => ['half', 'apart'].includes(between(ways, one.id, other.id))).map((other) => other.id);
        return others.length ? h('span', { class: 'bad-text' }, named(others)) : nothing;
      } },
      { label: 'Cannot open', minor: true, cell: (one) => {
        const closed = [...(ways.get(one.id) ?? [])].filter(([id, way]) => names.has(id) && isClosed(way));
        return closed.length ? h('span', { title: short(closed.map(([id, way]) => `${names.get(id)}: ${list(way.tried).map((it) => `${it.address} ${it.error}`).join(', ')}`).join('\n'), 2000) }, named(closed.map(([id]) => id))) : nothing;
      } },
      { label: 'Coordinates', cell: (one) => {
        const lead = leads.get(one.id) ?? [];
        if (!lead.length) return nothing;
        return [lead.slice(0, NAMED).map((it, at) => [at ? ', ' : '', pipelineLink(it.name), h('span', { class: 'muted' }, ` term ${count(it.term)}`)]), lead.length > NAMED && ` and ${counted(lead.length - NAMED, 'more', 'more')}`];
      } },
    ],
  });
}
