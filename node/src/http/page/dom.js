// A small virtual DOM: a view says what there should be, `patch` changes what differs. Nodes stay
// where they are, and with them focus, selection, scroll positions and what a person has typed.
//
// Text only ever becomes text nodes and attributes: there is no way to set HTML here.

const SVG = 'http://www.w3.org/2000/svg';
const META = Symbol('what a node was made of');

/**
 * Describes an element. Properties are attributes, but for:
 * `key` (which sibling it is, across patches), `on…` (listeners), `style` (an object),
 * `value`, `checked`, `disabled`, `open` (properties, set only when they change here), `opened` (whether
 * a fold is open at first),
 * `init` (called with the new element, which then owns what is inside; not patched again).
 */
export function h(tag, props, ...children) {
  return { tag, props: props ?? {}, children: children.flat(Infinity) };
}

const PROPERTIES = new Set(['value', 'checked', 'disabled', 'open']);

/** Makes the children of `parent` what `wanted` says. */
export function patch(parent, wanted) {
  const list = (Array.isArray(wanted) ? wanted : [wanted]).flat(Infinity);
  const keyed = new Map();
  const plain = [];
  const keys = new Set();
  for (const one of list) if (one?.props?.key !== undefined) keys.add(one.props.key);
  for (const node of [...parent.childNodes]) {
    const key = node[META]?.props?.key;
    if (key === undefined) plain.push(node);
    // Of two with one key the second would be found by nobody, and stay.
    else if (keys.has(key) && !keyed.has(key)) keyed.set(key, node);
    else node.remove();
  }
  const spare = [];
  let next = 0;
  let place = parent.firstChild;
  for (const one of list) {
    const key = one?.props?.key;
    let node;
    if (key !== undefined) {
      node = keyed.get(key);
      keyed.delete(key);
      if (node && !fits(node, one)) {
        spare.push(node);
        node = undefined;
      }
    } else if (plain[next] && fits(plain[next], one)) {
      node = plain[next++];
    } else if (plain[next + 1] && fits(plain[next + 1], one)) {
      // The one before has gone.
      spare.push(plain[next]);
      node = plain[next + 1];
      next += 2;
    }
    if (node) update(node, one);
    else node = create(one, parent.namespaceURI === SVG);
    while (spare.includes(place)) place = place.nextSibling;
    if (node === place) place = place.nextSibling;
    else parent.insertBefore(node, place);
  }
  for (const node of [...spare, ...plain.slice(next), ...keyed.values()]) node.remove();
}

// What is left out keeps its place, so that the siblings behind it stay what they are.
const isNothing = (one) => one === null || one === undefined || one === false || one === true;

function fits(node, one) {
  if (isNothing(one)) return node.nodeType === Node.COMMENT_NODE;
  if (typeof one !== 'object') return node.nodeType === Node.TEXT_NODE;
  return node[META]?.tag === one.tag && !one.props.init === !node[META].props.init;
}

function create(one, inSvg) {
  if (isNothing(one)) return document.createComment('');
  if (typeof one !== 'object') return document.createTextNode(String(one));
  const svg = inSvg || one.tag === 'svg';
  const node = svg ? document.createElementNS(SVG, one.tag) : document.createElement(one.tag);
  node[META] = { tag: one.tag, props: {}, listeners: {} };
  if (one.props.opened) node.open = true;
  if (one.props.init) one.props.init(node);
  update(node, one);
  return node;
}

function update(node, one) {
  if (isNothing(one)) return;
  if (typeof one !== 'object') {
    const text = String(one);
    if (node.data !== text) node.data = text;
    return;
  }
  const meta = node[META];
  const before = meta.props;
  if (!one.props.init) patch(node, one.children);
  for (const name of Object.keys(before)) if (!(name in one.props)) set(node, name, undefined, before[name]);
  for (const [name, value] of Object.entries(one.props)) {
    if (value !== before[name]) set(node, name, value, before[name]);
  }
  meta.props = one.props;
}

function set(node, name, value, before) {
  if (name === 'key' || name === 'init' || name === 'opened') return;
  if (name.startsWith('on')) {
    const listeners = node[META].listeners;
    const type = name.slice(2);
    if (!(type in listeners)) node.addEventListener(type, (event) => listeners[type]?.(event));
    listeners[type] = value;
  } else if (name === 'style') {
    for (const part of Object.keys(before ?? {})) if (!(part in (value ?? {}))) node.style.removeProperty(part);
    for (const [part, to] of Object.entries(value ?? {})) {
      if (before?.[part] !== to) node.style.setProperty(part, to);
    }
  } else if (PROPERTIES.has(name)) {
    node[name] = value ?? (name === 'value' ? '' : false);
  } else if (value === undefined || value === null || value === false) {
    node.removeAttribute(name);
  } else {
    node.setAttribute(name, value === true ? '' : String(value));
  }
}
