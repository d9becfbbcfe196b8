// Draws the document of the interface. Text only ever becomes text nodes: what stands in the document
// is never read as HTML.

const METHODS = ['get', 'post', 'put', 'delete'];
const main = document.getElementById('main');
const state = document.getElementById('state');

/** An element with its properties and children; strings become text. */
function el(tag, props, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) node.setAttribute(name, value);
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

/** Follows a reference within the document. */
function resolve(api, value) {
  let found = value;
  for (let steps = 0; found?.$ref && steps < 8; steps += 1) {
    found = found.$ref.slice(2).split('/').reduce((at, key) => at?.[key], api);
  }
  return found ?? {};
}

/** What a value may be, in a word or two. */
function kind(api, schema) {
  if (!schema || typeof schema !== 'object') return 'anything';
  if (schema.$ref) {
    const target = resolve(api, schema);
    return target.properties ? schema.$ref.split('/').pop() : kind(api, target);
  }
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(' | ');
  const either = schema.oneOf ?? schema.anyOf;
  if (either) return either.map((one) => kind(api, one)).join(' | ');
  const types = [schema.type ?? 'anything'].flat();
  return types
    .map((type) => {
      if (type === 'array') return `[${kind(api, schema.items)}]`;
      return schema.format ? `${type} (${schema.format})` : type;
    })
    .join(' | ');
}

/** A schema's fields, one a line, those of what they hold indented below. */
function fields(api, schema, depth = 0, seen = []) {
  const found = resolve(api, schema);
  const name = schema?.$ref;
  if (depth > 4 || (name && seen.includes(name))) return [];
  const trail = name ? [...seen, name] : seen;
  const lines = [];
  const parts = [found, ...(found.allOf ?? [])];
  for (const part of parts) {
    const object = resolve(api, part);
    for (const [field, value] of Object.entries(object.properties ?? {})) {
      const must = object.required?.includes(field) ? '' : '?';
      lines.push('  '.repeat(depth), `${field}${must}: ${kind(api, value)}`);
      if (value.description) lines.push(el('span', { class: 'about' }, `  ${value.description}`));
      lines.push('\n', ...fields(api, inner(api, value), depth + 1, trail));
    }
  }
  return lines;
}

/** What a field holds, if that has fields of its own. */
function inner(api, schema) {
  const found = schema.$ref ? schema : (schema.items ?? schema.oneOf?.find((one) => one.$ref) ?? {});
  return resolve(api, found).type === 'array' ? resolve(api, found).items : found;
}

function contents(api, content) {
  return Object.entries(content ?? {}).map(([type, body]) => {
    const lines = fields(api, body.schema);
    return [
      el('div', { class: 'small muted' }, `${type}: ${kind(api, body.schema)}`),
      lines.length > 0 ? el('pre', { class: 'schema', tabindex: '0' }, lines) : null,
    ];
  });
}

function parameters(api, list) {
  const rows = list.map((one) => resolve(api, one)).map((one) => [
    el('dt', {}, `${one.name}${one.required ? '' : '?'}`),
    el(
      'dd',
      {},
      el('span', { class: 'muted' }, `${one.in}, ${kind(api, one.schema)}. `),
      one.description ?? '',
    ),
  ]);
  return rows.length > 0 ? [el('h3', {}, 'Parameters'), el('dl', {}, rows)] : [];
}

function responses(api, all) {
  const rows = Object.entries(all).map(([status, one]) => {
    const response = resolve(api, one);
    const problem = response.content?.['application/problem+json'];
    return [
      el('dt', {}, status),
      el('dd', {}, response.description ?? '', problem ? null : contents(api, response.content)),
    ];
  });
  return [el('h3', {}, 'Answers'), el('dl', {}, rows)];
}

function operation(api, path, method, one) {
  const body = one.requestBody;
  const id = one.operationId ?? `${method}${path}`;
  const fold = el(
    'details',
    { class: 'operation', id, 'data-text': `${method} ${path} ${one.summary ?? ''}`.toLowerCase() },
    el(
      'summary',
      {},
      el('span', { class: `method ${method}` }, method),
      el('span', { class: 'path' }, path),
      el('span', { class: 'muted' }, one.summary ?? ''),
    ),
  );
  // Most are never opened.
  fold.addEventListener('toggle', () => {
    if (fold.children.length > 1) return;
    fold.append(
      el(
        'div',
        {},
        one.description ? el('p', {}, one.description) : null,
        parameters(api, one.parameters ?? []),
        body ? [el('h3', {}, 'Body'), body.description ?? '', contents(api, body.content)] : null,
        responses(api, one.responses ?? {}),
      ),
    );
  });
  return fold;
}

function draw(api) {
  const groups = new Map((api.tags ?? []).map((tag) => [tag.name, { about: tag.description, all: [] }]));
  for (const [path, item] of Object.entries(api.paths)) {
    for (const method of METHODS.filter((method) => item[method])) {
      const one = item[method];
      const name = one.tags?.[0] ?? 'more';
      if (!groups.has(name)) groups.set(name, { about: '', all: [] });
      groups.get(name).all.push(operation(api, path, method, one));
    }
  }
  main.replaceChildren(
    el('h1', {}, `${api.info.title}: HTTP interface`),
    el('p', {}, api.info.description ?? ''),
    el('p', {}, 'The document: ', el('a', { href: 'v1/openapi.json' }, 'v1/openapi.json'), ' (OpenAPI ', api.openapi, ')'),
    ...[...groups].filter(([, group]) => group.all.length > 0).flatMap(([name, group]) => [
      el('h2', {}, name, el('span', { class: 'muted' }, `  ${group.about ?? ''}`)),
      ...group.all,
    ]),
  );
  const open = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (open instanceof HTMLDetailsElement) {
    open.open = true;
    open.scrollIntoView();
  }
}

document.getElementById('filter').addEventListener('input', (event) => {
  const wanted = event.target.value.toLowerCase();
  for (const fold of document.querySelectorAll('.operation')) {
    fold.hidden = !fold.dataset.text.includes(wanted);
  }
});

try {
  // The page's token, if it was opened in this tab and the node asks for one.
  const token = sessionStorage.getItem('carbonmesh-token');
  const who = /^[\x21-\x7e]+$/.test(token ?? '') ? { authorization: `Bearer ${token}` } : {};
  const answer = await fetch('v1/openapi.json', { headers: { accept: 'application/json', ...who } });
  if (answer.status === 401) throw new Error('say who you are on the first page, in this tab');
  if (!answer.ok) throw new Error(`the node answers ${answer.status}`);
  draw(await answer.json());
} catch (error) {
  state.textContent = `The document cannot be read: ${error.message}`;
}
