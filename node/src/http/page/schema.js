// A form made of a JSON Schema: one field for each property, checked before anything is sent.
//
// It knows what forms need: types, `enum`, `default`, bounds, `pattern`, `required`. What it does not
// know, such as objects within objects, is a field for JSON. The text that is sent has numbers as they
// were typed.

import { h } from './dom.js';
import { field } from './ui.js';

/** Forms with more fields than these are not made: there is the field for JSON. */
const MOST = 100;

const NUMBER = /^-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?$/;

const kindOf = (property) => {
  if (Array.isArray(property.enum)) return property.enum.every((one) => one === null || typeof one !== 'object') ? 'enum' : 'json';
  return ['string', 'number', 'integer', 'boolean'].includes(property.type) ? property.type : 'json';
};

/** The fields of a schema, those that must be there first; null if no form can be made of it. */
export function fieldsOf(schema) {
  const properties = schema?.properties;
  if (!properties || typeof properties !== 'object' || Array.isArray(properties)) return null;
  const required = new Set(Array.isArray(schema.required) ? schema.required : []);
  const fields = Object.entries(properties).filter(([, one]) => one && typeof one === 'object').map(([name, one]) => ({
    name, property: one, kind: kindOf(one), required: required.has(name),
    label: typeof one.title === 'string' && one.title ? one.title : name,
    hint: typeof one.description === 'string' ? one.description : '',
  }));
  if (!fields.length || fields.length > MOST) return null;
  return [...fields.filter((one) => one.required), ...fields.filter((one) => !one.required)];
}

/** What a field shows of a value: text, or whether it is ticked. */
function shown({ kind, property }, value) {
  if (kind === 'boolean') return value === true;
  if (value === undefined) return '';
  if (kind === 'enum') return String(property.enum.findIndex((one) => one === value));
  return kind === 'json' || typeof value !== 'string' ? JSON.stringify(value) : value;
}

/** What fields hold at first, or of an object that was written as JSON. */
export function startOf(fields, object) {
  return new Map(fields.map((one) => [one.name, shown(one, object ? object[one.name] : one.property.default)]));
}

/** What is wrong with a field's text; null if nothing is. */
function wrong({ kind, property, required }, value) {
  if (kind === 'boolean') return null;
  if (value === '') return required && !(kind === 'string' && !(property.minLength > 0)) ? 'This has to be given.' : null;
  if (kind === 'json') {
    try {
      JSON.parse(value);
    } catch (error) {
      return `No JSON: ${error.message}`;
    }
    return null;
  }
  if (kind === 'string') {
    const length = [...value].length;
    if (length < property.minLength) return `At least ${property.minLength} characters are needed.`;
    if (length > property.maxLength) return `At most ${property.maxLength} characters are allowed.`;
    let pattern = null;
    try {
      pattern = typeof property.pattern === 'string' ? new RegExp(property.pattern, 'u') : null;
    } catch {
      // Browsers do not know all that others do.
    }
    return pattern && !pattern.test(value) ? `This has to look like ${property.pattern}` : null;
  }
  if (kind === 'enum') return null;
  const text = value.trim();
  if (!NUMBER.test(text)) return 'This has to be a number, such as 1.5.';
  if (kind === 'integer' && !Number.isInteger(Number(text))) return 'This has to be a whole number.';
  const number = Number(text);
  if (number < property.minimum) return `The least is ${property.minimum}.`;
  if (number > property.maximum) return `The most is ${property.maximum}.`;
  if (number <= property.exclusiveMinimum) return `It has to be more than ${property.exclusiveMinimum}.`;
  if (number >= property.exclusiveMaximum) return `It has to be less than ${property.exclusiveMaximum}.`;
  return null;
}

/** The instructions that fields make, as JSON; and what is wrong, by field. */
export function gather(fields, values) {
  const problems = new Map();
  const parts = [];
  for (const one of fields) {
    const value = values.get(one.name);
    const what = wrong(one, value);
    if (what) problems.set(one.name, what);
    const { kind, property, required } = one;
    let text;
    if (kind === 'boolean') text = value || required || property.default !== undefined ? String(value) : null;
    else if (kind === 'string') text = value === '' && !required ? null : JSON.stringify(value);
    else if (value === '') text = null;
    else if (kind === 'enum') text = JSON.stringify(property.enum[Number(value)]);
    else text = value.trim();
    if (text !== null && text !== undefined) parts.push(`${JSON.stringify(one.name)}: ${text}`);
  }
  return { text: `{${parts.join(', ')}}`, problems };
}

/** Draws the fields; `change` is called with a field's name and what it holds now. */
export function schemaForm(fields, start, problems, change) {
  return fields.map((one, at) => {
    const id = `field-${at}`;
    const { property, kind, required } = one;
    const bad = problems.get(one.name);
    const props = {
      name: id, id, 'aria-invalid': bad ? 'true' : 'false', 'aria-describedby': `${id}-wrong`,
      'aria-required': required && kind !== 'boolean' ? 'true' : undefined,
    };
    const typed = (event) => change(one.name, event.target.value);
    const first = start.get(one.name);
    const label = [one.label, required && kind !== 'boolean' && h('span', { class: 'muted' }, ' (needed)')];
    const told = h('p', { id: `${id}-wrong`, class: 'wrong', role: 'status' }, bad ?? '');
    if (kind === 'boolean') {
      return h('div', { key: one.name, class: 'field' },
        h('label', { class: 'tick' }, h('input', { ...props, type: 'checkbox', checked: first, onchange: (event) => change(one.name, event.target.checked) }), h('span', { class: 'label' }, label)),
        one.hint && h('span', { class: 'hint' }, one.hint), told);
    }
    const control = kind === 'enum'
      ? h('select', { ...props, onchange: typed },
        h('option', { value: '', selected: first === '' }, required ? 'choose…' : 'not given'),
        property.enum.map((value, index) => h('option', { key: index, value: String(index), selected: first === String(index) }, typeof value === 'string' ? value : JSON.stringify(value))))
      : kind === 'json' ? h('textarea', { ...props, rows: 2, spellcheck: 'false', autocomplete: 'off', value: first, oninput: typed })
        : h('input', { ...props, type: 'text', inputmode: kind === 'string' ? undefined : 'decimal', autocomplete: 'off', spellcheck: kind === 'string' ? undefined : 'false', value: first, oninput: typed });
    const hint = [one.hint, kind === 'json' && 'JSON', kind === 'integer' && 'a whole number', kind === 'number' && 'a number'].filter(Boolean).join(' – ');
    return h('div', { key: one.name }, field(label, control, hint), told);
  });
}
