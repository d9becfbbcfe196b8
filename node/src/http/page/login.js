// The form of nodes that ask who calls. The token stays in this tab's session storage and goes out in a
// header: there is no cookie that a browser would send along when another site calls the node.

import { h } from './dom.js';
import { token } from './api.js';
import { field, problem } from './ui.js';

/** Asks for a token; `done` is called once there is one to try. */
export function login(refusal, done) {
  return [
    h('h1', {}, 'Who are you?'),
    h('form', {
      class: 'inset',
      onsubmit: (event) => {
        event.preventDefault();
        const input = event.target.elements.token;
        const text = input.value.trim();
        if (!text) return;
        input.value = '';
        token.set(text);
        done();
      },
    },
    token.wasSent && problem(refusal),
    field('Token', h('input', {
      name: 'token', type: 'password', autocomplete: 'off', spellcheck: 'false', autocapitalize: 'off', required: true,
    }), 'Whoever runs this cluster makes one with carbonmesh token create. It is forgotten with this tab.'),
    h('div', { class: 'buttons' }, h('button', { type: 'submit', class: 'button primary' }, 'Log in'))),
  ];
}
