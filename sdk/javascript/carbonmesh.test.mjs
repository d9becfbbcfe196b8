// The host as a node sees it: `node --test sdk/javascript`.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';

const library = new URL('./carbonmesh.mjs', import.meta.url);
const handlers = `
import { phase, run, Retry, Fatal } from ${JSON.stringify(library)};
phase('shout', (instructions) => { console.log('a line'); return { text: instructions.text.toUpperCase() }; });
phase('fail', (instructions) => {
  if (instructions.how === 'fatal') throw new Fatal('never');
  if (instructions.how === 'half') throw new Fatal('\\ud83d');
  if (instructions.how === 'later') throw new Retry('busy', '30s');
  throw new RangeError('odd');
});
console.log('a line while the file is loaded');
process.stdout.write('and another\\n');
phase('list', () => [1]);
phase('odd', ({ how }) => {
  if (how === 'big') return { x: 1n };
  if (how === 'date') return new Date(0);
  if (how === 'half') return { x: '\\ud800' };
  if (how === 'escaped') return { x: '\\\\ud800' };
  if (how === 'cycle') { const a = {}; a.a = a; return a; }
  if (how === 'long') return { x: 'x'.repeat(100_000) };
  if (how === 'soon') throw new Retry('busy', 'soon');
  if (how === 'seconds') throw new Retry('busy', 1.5);
  if (how === 'mute') throw { toString() { throw new Error('no'); } };
  if (how === 'nothing') throw undefined;
  if (how === 'half-message') throw new Error('\\udc80');
});
phase('told', (_, context) => {
  context.log('\\ud800', 'warn');
  context.log('x', 'loud');
  context.progress(0 / 0);
  context.progress(7, 'most');
});
phase('pour', async function* () { for (;;) { yield 1; await new Promise(setImmediate); } });
phase('plain-items', function* () { yield 1; });
phase('function', (_, context) => { context.item(() => 1); });
phase('items', async function* () { yield 1; yield { two: 2 }; });
phase('maps', (_, { session, sessions }) => {
  session.set('n', { k: 1 }).set('gone', null).delete('gone');
  return { own: session.get('n'), all: Object.fromEntries(session), first: sessions.first };
});
phase('wait', (_, context) => new Promise((resolve) => {
  context.signal.addEventListener('abort', () => resolve({ stopped: true }));
}));
run({ concurrency: 2 });
`;

async function* lines(stream) {
  let text = '';
  for await (const chunk of stream.setEncoding('utf8')) {
    const parts = (text + chunk).split('\n');
    text = parts.pop();
    yield* parts;
  }
}

class Host {
  constructor() {
    this.folder = mkdtempSync(join(tmpdir(), 'carbonmesh-'));
    const file = join(this.folder, 'handlers.mjs');
    writeFileSync(file, handlers);
    this.child = spawn(process.execPath, [file], { stdio: ['pipe', 'pipe', 'pipe'] });
    this.lines = lines(this.child.stdout);
    this.child.stderr.resume();
    this.ended = new Promise((resolve) => this.child.on('exit', resolve));
  }

  async next() {
    return JSON.parse((await this.lines.next()).value);
  }

  say(frame) {
    this.child.stdin.write(`${JSON.stringify(frame)}\n`);
  }

  give(id, phase, instructions = {}, more = {}) {
    this.say({ type: 'run', id, phase, step: 's', instructions, attempt: 1, gives_items: true, ...more });
  }

  async close() {
    this.child.stdin.end();
    const code = await this.ended;
    rmSync(this.folder, { recursive: true });
    return code;
  }
}

test('a host says hello, runs phases and ends with the node', async () => {
  const host = new Host();
  const hello = await host.next();
  assert.equal(hello.type, 'hello');
  assert.equal(hello.concurrency, 2);
  assert.deepEqual(hello.phases[0], { name: 'shout' });
  host.say({ type: 'welcome', protocol: 1 });
  host.say({ type: 'weather' });
  host.give(1, 'shout', { text: 'hello' });
  assert.deepEqual(await host.next(), { type: 'result', id: 1, result: { text: 'HELLO' } });
  host.give(2, 'shout', { text: 'a\u2028b' });
  assert.deepEqual(await host.next(), { type: 'result', id: 2, result: { text: 'A\u2028B' } });
  host.give(3, 'shout', { text: 'x'.repeat(5_000_000) });
  assert.equal((await host.next()).result.text.length, 5_000_000);
  assert.equal(await host.close(), 0);
});

test('ends say whether to try again', async () => {
  const host = new Host();
  await host.next();
  host.give(1, 'fail');
  const odd = await host.next();
  assert.equal(odd.message, 'RangeError: odd');
  assert.ok(odd.retry && odd.traceback.includes('handlers.mjs'));
  host.give(2, 'fail', { how: 'fatal' });
  assert.deepEqual(await host.next(), { id: 2, type: 'error', message: 'never', retry: false });
  host.give(3, 'fail', { how: 'later' });
  assert.equal((await host.next()).retry_after, '30000ms');
  host.give(6, 'fail', { how: 'half' });
  assert.equal((await host.next()).message, '\ufffd');
  host.give(4, 'list');
  assert.equal((await host.next()).retry, false);
  host.give(5, 'nobody');
  assert.match((await host.next()).message, /nobody is not in this file/);
  await host.close();
});

test('items are given, and what is cancelled hears of it', async () => {
  const host = new Host();
  await host.next();
  host.give(1, 'items');
  assert.deepEqual(await host.next(), { type: 'item', item: 1, id: 1 });
  assert.deepEqual(await host.next(), { type: 'item', item: { two: 2 }, id: 1 });
  assert.deepEqual(await host.next(), { type: 'result', id: 1, result: {} });
  host.give(2, 'wait');
  host.give(3, 'shout', { text: 'beside' });
  assert.equal((await host.next()).id, 3);
  host.say({ type: 'cancel', id: 2 });
  assert.deepEqual(await host.next(), { type: 'result', id: 2, result: { stopped: true } });
  host.say({ type: 'shutdown' });
  assert.equal(await host.ended, 0);
  await host.close();
});

test('whatever a handler gives or throws is one frame', async () => {
  const host = new Host();
  await host.next();
  host.say({ type: 'welcome', protocol: 1, max_frame: 50_000 });
  const ends = {
    big: /BigInt/, date: /no object in JSON/, cycle: /circular/, long: /too long/,
  };
  for (const [how, reason] of Object.entries(ends)) {
    host.give(1, 'odd', { how });
    const end = await host.next();
    assert.match(end.message, reason);
    assert.equal(end.retry, false);
  }
  host.give(2, 'odd', { how: 'half' });
  assert.deepEqual((await host.next()).result, { x: '\ufffd' });
  host.give(2, 'odd', { how: 'escaped' });
  assert.deepEqual((await host.next()).result, { x: '\\ud800' });
  host.give(3, 'odd', { how: 'soon' });
  assert.match((await host.next()).message, /soon is no duration/);
  host.give(3, 'odd', { how: 'seconds' });
  assert.equal((await host.next()).retry_after, '1500ms');
  for (const [how, message] of [['mute', /cannot be shown/], ['nothing', /undefined/], ['half-message', /\ufffd/]]) {
    host.give(4, 'odd', { how });
    assert.match((await host.next()).message, message);
  }
  host.give(5, 'told');
  assert.deepEqual(await host.next(), { type: 'log', level: 'warning', message: '\ufffd', id: 5 });
  assert.equal((await host.next()).level, 'info');
  assert.equal((await host.next()).done, 0);
  assert.deepEqual(await host.next(), { type: 'progress', done: 1, message: 'most', id: 5 });
  assert.deepEqual((await host.next()).result, {});
  assert.equal(await host.close(), 0);
});

test('a session is left, and those before are read', async () => {
  const host = new Host();
  await host.next();
  const left = { first: { n: 0, old: 'a' }, second: { old: 'b' } };
  host.give(1, 'maps', {}, { sessions: left });
  assert.deepEqual(await host.next(), { type: 'session', key: 'n', value: { k: 1 }, id: 1 });
  assert.deepEqual(await host.next(), { type: 'session', key: 'gone', value: null, id: 1 });
  assert.deepEqual(await host.next(), { type: 'session', key: 'gone', id: 1 });
  const result = { own: { k: 1 }, all: { n: { k: 1 }, old: 'b' }, first: left.first };
  assert.deepEqual(await host.next(), { type: 'result', id: 1, result });
  host.give(2, 'maps', {}, { gives_items: false });
  const failed = await host.next();
  assert.equal(failed.retry, false);
  assert.match(failed.message, /for_each/);
  await host.close();
});

test('items end where nobody takes them', async () => {
  const host = new Host();
  await host.next();
  host.give(1, 'plain-items');
  assert.equal((await host.next()).item, 1);
  assert.equal((await host.next()).type, 'result');
  host.give(2, 'plain-items', {}, { gives_items: false });
  assert.match((await host.next()).message, /for_each = "s"/);
  host.give(3, 'function');
  assert.match((await host.next()).message, /an item is no JSON/);
  host.give(4, 'pour');
  await host.next();
  host.say({ type: 'cancel', id: 4 });
  let frame;
  do frame = await host.next(); while (frame.type === 'item');
  assert.equal(frame.message, 'the attempt was cancelled');
  assert.equal(await host.close(), 0);
});

test('what runs when the node ends is told, and does not hold it up', async () => {
  const host = new Host();
  await host.next();
  host.give(1, 'wait');
  host.say({ type: 'shutdown' });
  assert.deepEqual(await host.next(), { type: 'result', id: 1, result: { stopped: true } });
  assert.equal(await host.ended, 0);
  await host.close();
});
