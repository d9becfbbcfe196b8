// Phases and what they come after: read from definitions, laid out in layers, drawn as SVG.

import { h } from './dom.js';
import { short } from './format.js';
import { shape } from './ui.js';

/** A phase as a table, whether it is written as a name or as one. */
export const full = (item) => (typeof item === 'string' ? { name: item } : (item ?? {}));

/** `[{ name, phase, after, ... }]` of a list of phases in a document; `after` is always a list. */
export function phasesOf(items) {
  let before = null;
  return (Array.isArray(items) ? items : []).map((item) => {
    const one = full(item);
    const usual = one.for_each ? [one.for_each] : before ? [before] : [];
    before = one.name;
    return { ...one, phase: one.phase ?? one.name, after: one.after ?? usual, within: one.phases ? phasesOf(one.phases) : null };
  });
}

/** The steps that workers run, with those within and those that undo. */
export function worked(phases) {
  return phases.flatMap((one) => [
    ...(one.within ? worked(one.within) : one.wait_for ? [] : [one]),
    ...(one.compensate ? phasesOf([one.compensate]) : []),
  ]);
}

/** The phases that a job's invocations are of, if one of the definitions has them; else null. */
export function phasesOfJob(job, definitions) {
  const steps = job.invocations.map((one) => one.step);
  const same = (phases) => phases.length === steps.length && phases.every((one, at) => one.name === steps[at]);
  for (const definition of definitions) {
    const top = phasesOf(definition?.phases);
    if (job.compensates) {
      const undo = new Map(allOf(top).filter((one) => one.compensate).map((one) => {
        const [it] = phasesOf([one.compensate]);
        return [it.name, it];
      }));
      if (!steps.every((step) => undo.has(step))) continue;
      // One after the other, what was done last first.
      const chain = steps.map((step) => undo.get(step));
      return chain.map((one, at) => ({ ...one, after: chain[at + 1] ? [chain[at + 1].name] : [] }));
    }
    const found = job.parent ? itemLists(top).find(same) : [top].find(same);
    if (found) return found;
  }
  return null;
}

const allOf = (phases) => phases.flatMap((one) => [one, ...(one.within ? allOf(one.within) : [])]);

/** What is done with items: lists within a phase, or the phase alone. */
function itemLists(phases) {
  return phases.filter((one) => one.for_each).flatMap((one) =>
    one.within ? [one.within, ...itemLists(one.within)] : [[{ ...one, after: [], for_each: undefined }]]);
}

const WIDTH = 172;
const HEIGHT = 46;
const GAP_X = 52;
const GAP_Y = 16;
const PAD = 10;
const LANE = 14;

/** Where each phase stands: layers from left to right, with room for lines that pass by. */
export function layout(phases) {
  const byName = new Map(phases.map((one, at) => [one.name, at]));
  const edges = [];
  phases.forEach((one, to) => {
    for (const name of new Set([...one.after, ...(one.for_each ? [one.for_each] : [])])) {
      const from = byName.get(name);
      // Phases come before those that stand behind them in the document; what does not is left out.
      if (from !== undefined && from !== to) edges.push({ from, to, each: one.for_each === name });
    }
  });
  const layer = phases.map(() => 0);
  for (let round = 0; round < phases.length; round += 1) {
    let moved = false;
    for (const edge of edges) {
      if (layer[edge.to] <= layer[edge.from]) {
        if (layer[edge.from] + 1 > phases.length) continue;
        layer[edge.to] = layer[edge.from] + 1;
        moved = true;
      }
    }
    if (!moved) break;
  }
  const nodes = phases.map((_, at) => ({ at, layer: layer[at], height: HEIGHT }));
  const links = [];
  for (const edge of edges) {
    const path = [nodes[edge.from]];
    for (let level = layer[edge.from] + 1; level < layer[edge.to]; level += 1) {
      const bend = { at: null, layer: level, height: LANE };
      nodes.push(bend);
      path.push(bend);
    }
    path.push(nodes[edge.to]);
    links.push({ ...edge, path });
  }
  const layers = [];
  for (const node of nodes) (layers[node.layer] ??= []).push(node);
  for (let at = 0; at < layers.length; at += 1) layers[at] ??= [];
  const neighbours = (node, step) => links.flatMap(({ path }) =>
    path.flatMap((one, at) => (one === node && path[at + step] ? [path[at + step]] : [])));
  // Few crossings: each node goes to the middle of those before it, then of those behind it. Very
  // large graphs keep the order of the document.
  const sweeps = nodes.length <= 400 ? 6 : 0;
  layers.forEach((nodesHere) => nodesHere.forEach((node, at) => (node.order = at)));
  for (let sweep = 0; sweep < sweeps; sweep += 1) {
    const forward = sweep % 2 === 0;
    for (const here of forward ? layers : [...layers].reverse()) {
      const middle = new Map(here.map((node) => {
        const near = neighbours(node, forward ? -1 : 1);
        return [node, near.length ? near.reduce((sum, one) => sum + one.order, 0) / near.length : node.order];
      }));
      here.sort((one, other) => middle.get(one) - middle.get(other) || one.order - other.order);
      here.forEach((node, at) => (node.order = at));
    }
  }
  const heights = layers.map((here) => here.reduce((sum, node) => sum + node.height + GAP_Y, -GAP_Y));
  const height = Math.max(HEIGHT, ...heights);
  layers.forEach((here, level) => {
    let y = PAD + (height - heights[level]) / 2;
    for (const node of here) {
      node.x = PAD + level * (WIDTH + GAP_X);
      node.y = y + node.height / 2;
      y += node.height + GAP_Y;
    }
  });
  return { nodes: nodes.slice(0, phases.length), links, width: PAD * 2 + layers.length * (WIDTH + GAP_X) - GAP_X, height: height + PAD * 2 };
}

function linkPath({ path }) {
  let [x, y] = [path[0].x + WIDTH, path[0].y];
  let d = `M${x} ${y}`;
  for (const [at, node] of path.slice(1).entries()) {
    const last = at === path.length - 2;
    const to = last ? node.x - 5 : node.x;
    const bend = (to - x) / 2;
    d += `C${x + bend} ${y} ${to - bend} ${node.y} ${to} ${node.y}`;
    if (!last) d += `H${node.x + WIDTH}`;
    [x, y] = [node.x + WIDTH, node.y];
  }
  return d;
}

const cache = new Map();

/** The layout of phases, made once for each shape. */
function laidOut(phases) {
  const key = JSON.stringify(phases.map((one) => [one.name, one.after, one.for_each]));
  if (!cache.has(key)) {
    if (cache.size > 20) cache.clear();
    cache.set(key, layout(phases));
  }
  return cache.get(key);
}

/** What a phase is besides its name, in a few words. */
export function about(phase) {
  if (phase.wait_for) return `signal ${phase.wait_for}`;
  if (phase.within) return `each: ${phase.within.map((one) => one.name).join(' → ')}`;
  if (phase.for_each) return `each of ${phase.for_each}`;
  return phase.phase === phase.name ? '' : phase.phase;
}

/**
 * Draws phases. `look(phase)` gives `{ state, text, note }`: a state of the page (colour and icon), a
 * second line, and what is said beside the name; `choose(phase)` is called with what is clicked.
 */
export function graph(phases, { label, look, choose }) {
  if (!phases.length) return h('p', { class: 'empty' }, 'No phases.');
  const { nodes, links, width, height } = laidOut(phases);
  return h('div', { class: 'scroll graph', role: 'group', 'aria-label': label, tabindex: '0' },
    h('svg', { width, height, viewBox: `0 0 ${width} ${height}`, role: 'presentation' },
      h('defs', {}, h('marker', { id: 'arrow', viewBox: '0 0 6 6', refX: 5, refY: 3, markerWidth: 7, markerHeight: 7, orient: 'auto' }, h('path', { d: 'M0 0L6 3L0 6z', class: 'arrow-head' }))),
      links.map((link) => h('path', { key: `${link.from} ${link.to}`, class: `link${link.each ? ' each' : ''}`, d: linkPath(link), 'marker-end': 'url(#arrow)' })),
      nodes.map((node) => {
        const phase = phases[node.at];
        const { state, text, note } = look(phase);
        const tags = [phase.when && 'when', phase.compensate && 'undo', phase.for_each && 'each', phase.wait_for && 'signal'].filter(Boolean);
        const signed = state && SIGNS.has(state);
        const name = short(phase.name, 19 - tags.length * 2 - (signed ? 2 : 0));
        const line = text && short(text, 25);
        // What is to be read comes first, so that whoever speaks to the page can name it.
        const said = [[name, line].filter(Boolean).join(' '), name !== phase.name && phase.name, state, note !== text && note, phase.when && `runs if ${phase.when}`, phase.compensate && `undone by ${full(phase.compensate).name}`, phase.after.length > 0 && `after ${phase.after.join(', ')}`].filter(Boolean);
        return h('g', {
          key: phase.name, class: `phase p-${state ?? 'plain'}`, transform: `translate(${node.x} ${node.y - HEIGHT / 2})`,
          tabindex: '0', role: 'button', 'aria-label': said.join(', '),
          onclick: () => choose(phase),
          onkeydown: (event) => {
            if (event.key !== 'Enter' && event.key !== ' ') return;
            event.preventDefault();
            choose(phase);
          },
        },
          h('title', {}, said.join('\n')),
          phase.for_each && h('rect', { class: 'stack', x: 4, y: -4, width: WIDTH, height: HEIGHT, rx: 6 }),
          h('rect', { class: 'box', width: WIDTH, height: HEIGHT, rx: 6 }),
          h('rect', { class: 'edge', width: 4, height: HEIGHT, rx: 2 }),
          h('text', { class: 'name', x: 14, y: line ? 19 : 28 }, name),
          line && ' ',
          line && h('text', { class: 'text', x: 14, y: 36 }, line),
          signed && h('path', { class: 'sign', d: shape(state), transform: `translate(${WIDTH - 23} 6) scale(.95)` }),
          tags.map((tag, at) => h('path', { key: tag, class: 'tag', d: shape(tag), transform: `translate(${WIDTH - 21 - at * 16 - (signed ? 18 : 0)} 7) scale(.8)` })));
      })));
}

const SIGNS = new Set(['queued', 'running', 'succeeded', 'dead', 'cancelled', 'skipped', 'waiting', 'paused', 'warning']);
