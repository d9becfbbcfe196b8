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
phase('list', () => [1]);
phase('items', async function* () { yield 1; yield { two: 2 }; });
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

  give(id, phase, instructions = {}) {
    this.say({ type: 'run', id, phase, instructions, attempt: 1, gives_items: true });
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
  assert.equal((await host.next()).retry_after, '30s');
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
