// The cluster at a glance; and its nodes.

import { h } from './dom.js';
import { api } from './api.js';
import { badge, button, cellCount, confirm, facts, href, icon, node, note, parts, pipelineLink, slots, table } from './ui.js';
import { count, counted, duration, nodeName, rate, short } from './format.js';
import { rateLine } from './charts.js';
import { past } from './history.js';
import { TOTAL, rateOf } from './rates.js';
import { nodeMap } from './map.js';

/** How many rows are shown before somebody asks for more. */
const PIPELINES = 60;
const NODES = 24;
const PHASES = 12;
const ORDER = { down: 0, suspect: 1, alive: 2, retired: 3 };

/** What somebody should look after, the worst first. */
function warnings({ status, nodes }) {
  const out = [];
  const unoffered = new Map();
  for (const one of status.pipelines) {
    for (const phase of one.unoffered) unoffered.set(phase, [...(unoffered.get(phase) ?? []), one.name]);
  }
  for (const [phase, names] of unoffered) {
    out.push({
      key: `unoffered ${phase}`, bad: true, text: ['Nobody offers phase ', h('strong', {}, phase), ': jobs wait for it in ',
        names.slice(0, 5).map((name, at) => [at ? ', ' : '', pipelineLink(name)]), names.length > 5 && ` and ${count(names.length - 5)} more`,
        '. Start a node that has it.'],
    });
  }
  const away = nodes.filter((one) => one.liveness === 'down' || one.liveness === 'suspect');
  if (away.length) {
    out.push({ key: 'away', bad: away.some((one) => one.liveness === 'down'), text: [
      `${counted(away.length, 'node')} cannot be reached: `,
      away.slice(0, 8).map((one, at) => [at ? ', ' : '', h('strong', {}, short(nodeName(one), 40)), ` (${one.liveness})`]), away.length > 8 && ', …'] });
  }
  const reasons = new Map();
  for (const one of nodes) if (one.refusing) reasons.set(one.refusing, [...(reasons.get(one.refusing) ?? []), one]);
  for (const [why, found] of [...reasons].slice(0, 8)) {
    out.push({ key: `refusing ${why}`, bad: true, text: [found.length === 1 ? 'Node ' : `${count(found.length)} nodes, `,
      found.slice(0, 5).map((one, at) => [at ? ', ' : '', h('strong', {}, short(nodeName(one), 40))]), found.length > 5 && ', …',
      `${found.length === 1 ? ' takes' : ', take'} no jobs: ${why}`] });
  }
  const alone = status.pipelines.filter((one) => parts(one).some((part) => !part.coordinator));
  if (alone.length) {
    out.push({ key: 'alone', text: [`Nobody coordinates ${alone.length === 1 ? 'pipeline ' : `${count(alone.length)} pipelines: `}`,
      alone.slice(0, 5).map((one, at) => [at ? ', ' : '', pipelineLink(one.name)]), alone.length > 5 && ', …', ' at present.'] });
  }
  const versions = new Set(nodes.filter((one) => one.liveness === 'alive').map((one) => one.version));
  if (versions.size > 1) out.push({ key: 'versions', text: [`Nodes of ${versions.size} versions run side by side: ${[...versions].sort().join(', ')}.`] });
  return out;
}

export function alerts(ctx, of = warnings(ctx)) {
  return of.length > 0 && h('ul', { class: 'alerts', 'aria-label': 'Warnings' },
    of.map((one) => h('li', { key: one.key, class: one.bad ? 'bad' : '' }, icon('warning'), h('span', {}, one.text))));
}

/** Each phase with the slots of the nodes that can be reached. */
export function offers(nodes) {
  const found = new Map();
  for (const one of nodes) {
    if (one.liveness !== 'alive') continue;
    for (const offer of one.phases ?? []) {
      const sum = found.get(offer.phase) ?? { phase: offer.phase, slots: 0, busy: 0, nodes: [] };
      sum.slots += offer.slots;
      sum.busy += Math.min(offer.busy, offer.slots);
      sum.nodes.push(one);
      found.set(offer.phase, sum);
    }
  }
  return found;
}

/** The sum of a count over all pipelines that somebody counts. */
function sum(pipelines, name) {
  const known = pipelines.filter((one) => typeof one.counts?.[name] === 'number');
  return { value: known.length || !pipelines.length ? known.reduce((all, one) => all + one.counts[name], 0) : null, missing: pipelines.length - known.length };
}

export function tile({ label, value, text, chart, to, kind }) {
  const inside = [h('span', { class: 'tile-label' }, label), h('span', { class: 'tile-value' }, value), h('span', { class: 'tile-text' }, text ?? '\u00a0'), chart];
  const props = { key: label, class: `tile ${kind ?? ''}` };
  return to ? h('a', { ...props, href: to }, inside) : h('div', props, inside);
}

/** The namespace that a pipeline lives in: of one that names none, the default one. */
const namespaceOf = (name) => (name.includes('/') ? name.slice(0, name.indexOf('/')) : 'default');

const compare = (one, other) => (one > other) - (one < other);

export function overview(ctx) {
  const state = { filter: '', namespace: '', by: 'name', down: false, all: false };
  const sort = { get by() { return state.by; }, get down() { return state.down; }, set: (by, down) => ctx.redraw(Object.assign(state, { by, down })) };
  const counts = (name) => ({ name, num: true, order: (one) => one.counts?.[name] ?? -1 });
  const columns = [
    { name: 'name', label: 'Pipeline', order: (one) => one.name, cell: (one) => [
      pipelineLink(one.name),
      one.paused && badge('paused'),
      !one.paused && one.paused_phases.length > 0 && badge('paused', counted(one.paused_phases.length, 'phase')),
      one.unoffered.length > 0 && badge('warning', 'no worker')] },
    { name: 'rate', label: 'Finished /s', num: true, minor: true, order: (one) => rateOf(one.name).now ?? -1, cell: (one) => {
      const found = rateOf(one.name);
      return h('div', { class: 'with-spark' }, rateLine(found, { width: 90, height: 20 }), h('span', { class: 'num rate' }, found.now ? rate(found.now) : h('span', { class: 'muted' }, rate(found.now))));
    } },
    { ...counts('queued'), label: 'Queued', cell: (one) => cellCount(one.counts?.queued) },
    { ...counts('running'), label: 'Running', cell: (one) => [cellCount(one.counts?.running), one.counts?.items > 0 && h('span', { class: 'muted minor', title: 'unfinished items' }, ` +${count(one.counts.items)} items`)] },
    { ...counts('succeeded'), label: 'Succeeded', minor: true, cell: (one) => cellCount(one.counts?.succeeded) },
    { ...counts('dead'), label: 'Dead', cell: (one) => one.counts?.dead > 0
      ? h('a', { class: 'bad-number', href: `${href('pipelines', one.name)}?state=dead`, 'aria-label': `${counted(one.counts.dead, 'dead letter')} of ${one.name}` }, count(one.counts.dead))
      : cellCount(one.counts?.dead) },
    { name: 'coordinator', label: 'Coordinator', minor: true, order: (one) => nodeName(one.coordinator), cell: (one) => parts(one).every((part) => part.coordinator) ? [node(one.coordinator), one.partitions?.length > 0 && h('span', { class: 'muted' }, ` and ${count(one.partitions.length - 1)} more`)] : h('span', { class: 'bad-text' }, 'nobody') },
    { name: 'term', label: 'Term', num: true, least: true, cell: (one) => count(one.term) },
    { name: 'replicas', label: 'Replicas', least: true, cell: (one) => h('span', { class: 'muted' }, short(one.replicas.map(nodeName).join(' '), 40)) },
  ];
  const history = past(ctx, null);
  return {
    title: 'Overview',
    load: history.load,
    render: () => {
      const { status, nodes } = ctx;
      const { pipelines } = status;
      const queued = sum(pipelines, 'queued');
      const running = sum(pipelines, 'running');
      const items = sum(pipelines, 'items');
      const dead = sum(pipelines, 'dead');
      const total = rateOf(TOTAL);
      const uncounted = queued.missing ? `${counted(queued.missing, 'pipeline')} not counted` : null;
      const alive = nodes.filter((one) => one.liveness === 'alive').length;
      const present = nodes.filter((one) => one.liveness !== 'retired').length;
      const offered = [...offers(nodes).values()].sort((one, other) => compare(one.phase, other.phase));
      const busy = offered.reduce((all, one) => all + one.busy, 0);
      const places = offered.reduce((all, one) => all + one.slots, 0);
      const text = state.filter.trim().toLowerCase();
      const order = columns.find((one) => one.name === state.by).order;
      const namespaces = [...new Set(pipelines.map((one) => namespaceOf(one.name)))].sort();
      // Whose last pipeline is gone filters nothing any more.
      const within = namespaces.includes(state.namespace) ? state.namespace : '';
      const found = pipelines.filter((one) => one.name.toLowerCase().includes(text) && (!within || namespaceOf(one.name) === within))
        .sort((one, other) => (state.down ? -1 : 1) * compare(order(one), order(other)) || compare(one.name, other.name));
      const shown = state.all ? found : found.slice(0, PIPELINES);
      return [
        h('h1', { class: 'hidden' }, 'Overview'),
        h('div', { class: 'tiles' },
          tile({ label: 'Finished per second', value: rate(total.now), kind: 'wide', text: total.since > 20_000 ? `the last ${duration(total.since)}` : 'being measured', chart: rateLine(total, { width: 260, height: 48 }) }),
          tile({ label: 'Queued', value: count(queued.value), text: uncounted, kind: 't-queued' }),
          tile({ label: 'Running', value: count(running.value), text: items.value > 0 ? `and ${counted(items.value, 'item')}` : uncounted, kind: 't-running' }),
          tile({ label: 'Dead letters', value: count(dead.value), text: dead.value > 0 ? 'see which' : uncounted, to: '#/dead', kind: dead.value > 0 ? 't-dead' : '' }),
          tile({ label: 'Nodes', value: [count(alive), h('small', {}, ` of ${count(present)}`)], text: alive < present ? `${count(present - alive)} not reached` : 'all reached', to: '#/nodes', kind: alive < present ? 't-dead' : '' }),
          tile({ label: 'Slots busy', value: [count(busy), h('small', {}, ` of ${count(places)}`)], text: counted(offered.length, 'phase') })),
        alerts(ctx),
        h('section', { class: 'panel', 'aria-labelledby': 'h-pipelines' },
          h('div', { class: 'panel-head' }, h('h2', { id: 'h-pipelines' }, 'Pipelines ', h('span', { class: 'muted' }, count(pipelines.length))),
            namespaces.length > 1 && h('select', { value: within, 'aria-label': 'Namespace', onchange: (event) => ctx.redraw((state.namespace = event.target.value)) },
              ['', ...namespaces].map((one) => h('option', { key: one, value: one }, one || 'All namespaces'))),
            pipelines.length > 8 && h('input', { type: 'search', class: 'filter', placeholder: 'Filter', 'aria-label': 'Filter pipelines by name', oninput: (event) => ctx.redraw((state.filter = event.target.value)) })),
          table({
            label: 'Pipelines', columns, rows: shown, key: (one) => one.name, sort,
            empty: pipelines.length ? 'No pipeline has such a name.' : ['There is no pipeline yet. ', h('code', {}, 'carbonmesh pipeline apply FILE'), ' makes one known.'],
          }),
          found.length > shown.length && h('button', { type: 'button', class: 'more', onclick: () => ctx.redraw((state.all = true)) }, `Show all ${count(found.length)}`)),
        h('div', { class: 'columns' },
          h('section', { class: 'panel grow', 'aria-labelledby': 'h-nodes' },
            h('div', { class: 'panel-head' }, h('h2', { id: 'h-nodes' }, 'Nodes ', h('span', { class: 'muted' }, count(nodes.length))), h('a', { href: '#/nodes' }, 'Details')),
            nodeTable(ctx, sorted(nodes).slice(0, NODES)),
            nodes.length > NODES && h('a', { class: 'more', href: '#/nodes' }, `All ${count(nodes.length)} nodes`)),
          phasePanel(offered)),
        history.render(),
      ];
    },
  };
}

const sorted = (nodes) => [...nodes].sort((one, other) =>
  (ORDER[one.liveness] ?? 2) - (ORDER[other.liveness] ?? 2) || compare(one.name, other.name) || compare(one.id, other.id));

function nodeSlots(one) {
  const all = (one.phases ?? []).reduce((sum, offer) => sum + offer.slots, 0);
  const busy = (one.phases ?? []).reduce((sum, offer) => sum + offer.busy, 0);
  return all > 0 ? slots(busy, all) : h('span', { class: 'muted' }, '–');
}

function nodeTable(ctx, nodes) {
  return table({
    label: 'Nodes', rows: nodes, key: (one) => one.id, empty: 'No nodes.',
    columns: [
      { label: 'Node', cell: (one) => [h('a', { href: href('nodes', one.id), title: one.id }, short(nodeName(one), 40)), one.id === ctx.status.node?.id && h('span', { class: 'tag', title: 'This page asks this node' }, 'asked')] },
      { label: 'State', cell: (one) => [badge(one.liveness), one.refusing && badge('warning', 'takes no jobs')] },
      { label: 'Slots busy', cell: nodeSlots },
      { label: 'Roles', minor: true, cell: (one) => h('span', { class: 'muted' }, (one.roles ?? []).join(', ')) },
      { label: 'Version', least: true, cell: (one) => h('span', { class: 'muted' }, one.version) },
    ],
  });
}

function phasePanel(offered) {
  return h('section', { class: 'panel phases', 'aria-labelledby': 'h-phases' },
    h('div', { class: 'panel-head' }, h('h2', { id: 'h-phases' }, 'Phases offered ', h('span', { class: 'muted' }, count(offered.length)))),
    table({
      label: 'Phases offered', rows: offered, key: (one) => one.phase, empty: 'No node that can be reached offers a phase.',
      columns: [
        { label: 'Phase', cell: (one) => short(one.phase, 40) },
        { label: 'Slots busy', cell: (one) => slots(one.busy, one.slots) },
        { label: 'Nodes', num: true, cell: (one) => h('span', { title: short(one.nodes.map(nodeName).join(', '), 300) }, count(one.nodes.length)) },
      ],
    }));
}

export function nodesView(ctx, id) {
  const state = { filter: '' };
  const map = nodeMap(ctx);
  return {
    title: 'Nodes',
    load: map.load,
    render: () => {
      const text = state.filter.trim().toLowerCase();
      const found = sorted(ctx.nodes).filter((one) => [nodeName(one), one.id, ...(one.phases ?? []).map((offer) => offer.phase), ...Object.entries(one.labels ?? {}).flat()]
        .some((part) => String(part).toLowerCase().includes(text)));
      const offered = [...offers(ctx.nodes).values()].sort((one, other) => compare(one.phase, other.phase));
      return [
        h('div', { class: 'page-head' }, h('h1', {}, 'Nodes ', h('span', { class: 'muted' }, count(ctx.nodes.length))),
          ctx.nodes.length > 6 && h('input', { type: 'search', class: 'filter', placeholder: 'Name, phase or label', 'aria-label': 'Filter nodes by name, phase or label', oninput: (event) => ctx.redraw((state.filter = event.target.value)) })),
        alerts(ctx),
        map.render(),
        h('div', { class: 'cards' }, found.map((one) => card(ctx, one, one.id === id))),
        found.length === 0 && h('p', { class: 'empty' }, 'No node fits.'),
        phasePanel(offered),
      ];
    },
    // A link to one node leads to its card.
    shown: () => id && document.getElementById(`node-${id}`)?.scrollIntoView({ block: 'center' }),
  };
}

const slotList = (phases) => phases.length > 0 && h('div', { class: 'slot-list' }, phases.map((offer) =>
  h('div', { key: offer.phase }, slots(offer.busy, offer.slots, short(offer.phase, 32)))));

function card(ctx, one, chosen) {
  const phases = one.phases ?? [];
  const coordinates = ctx.status.pipelines.filter((pipeline) => parts(pipeline).some((part) => part.coordinator?.id === one.id));
  return h('section', { key: one.id, id: `node-${one.id}`, class: `panel card${chosen ? ' chosen' : ''}`, 'aria-label': `Node ${nodeName(one)}` },
    h('div', { class: 'panel-head' }, h('h2', {}, short(nodeName(one), 48)), badge(one.liveness), one.id === ctx.status.node?.id && h('span', { class: 'tag', title: 'This page asks this node' }, 'asked')),
    one.refusing && h('p', { class: 'bad-text inset' }, icon('warning'), ` Takes no jobs: ${one.refusing}`),
    slotList(phases.slice(0, PHASES)),
    phases.length > PHASES && h('details', { class: 'more-of flat' }, h('summary', {}, `${count(phases.length - PHASES)} more phases`), slotList(phases.slice(PHASES))),
    facts([
      ['Roles', (one.roles ?? []).join(', ') || 'none'],
      ['Coordinates', coordinates.length > 0 && [coordinates.slice(0, 6).map((pipeline, at) => [at ? ', ' : '', pipelineLink(pipeline.name), h('span', { class: 'muted' }, pipeline.partitions?.length ? ` ${count(pipeline.partitions.filter((part) => part.coordinator?.id === one.id).length)} of ${count(pipeline.partitions.length)} partitions` : ` term ${count(pipeline.term)}`)]), coordinates.length > 6 && ` and ${count(coordinates.length - 6)} more`]],
      ['Labels', Object.keys(one.labels ?? {}).length > 0 && Object.entries(one.labels).map(([name, value]) => h('span', { class: 'tag', key: name }, `${name}=${value}`))],
      ['Listens', (one.addresses ?? []).length > 0 && h('span', { class: 'mono small' }, one.addresses.join(' '))],
      ['Version', one.version],
      ['Id', h('span', { class: 'mono small' }, one.id)],
      ['Disk', h('span', { class: 'mono small' }, one.disk)],
    ]),
    one.liveness === 'alive' && h('div', { class: 'inset' }, one.id === ctx.status.node?.id
      ? button('Drain…', () => drain(ctx, one), { class: 'button small danger', 'aria-label': `Drain node ${nodeName(one)}` })
      : h('p', { class: 'hint' }, 'Only the node itself can be told to drain: open the page that it serves, or send it ', h('code', {}, 'POST /v1/nodes/self/drain'), '.')));
}

/** Lets the node that is asked take no more work, after asking. */
async function drain(ctx, one) {
  const sure = await confirm({
    title: `Drain node ${short(nodeName(one), 40)}?`, yes: 'Drain it', danger: true,
    text: 'It takes no new work until it is started again, hands over what it coordinates, and lets what runs end. Jobs can be enqueued through the other nodes.',
  });
  if (!sure) return;
  const { quiet } = await api.drain();
  note(quiet ? 'It takes no more work, and nothing runs on it.' : 'It takes no more work; what runs goes on to its end.');
  await ctx.refresh();
}
