// Numbers, times and durations for people.

const THIN = '\u202f';
const DASH = '–';

/** 12 345; what is missing is a dash. */
export function count(value) {
  if (typeof value !== 'number' || !Number.isFinite(value)) return DASH;
  return String(Math.round(value)).replace(/\B(?=(\d{3})+(?!\d))/g, THIN);
}

/** One of `one`, or many of `many`. */
export const counted = (value, one, many = `${one}s`) => `${count(value)} ${value === 1 ? one : many}`;

/** Jobs a second. */
export function rate(value) {
  if (value === null || value === undefined) return DASH;
  if (value === 0) return '0';
  if (value < 10) return value.toFixed(value < 0.1 ? 2 : 1);
  return count(value);
}

/** 850 ms, 2.4 s, 3 min 5 s, 2 h 10 min, 3 d 4 h. */
export function duration(ms) {
  if (!Number.isFinite(ms)) return DASH;
  const s = Math.max(0, ms) / 1000;
  if (s < 1) return `${Math.round(Math.max(0, ms))}${THIN}ms`;
  if (s < 60) return `${s < 10 ? s.toFixed(1) : Math.floor(s)}${THIN}s`;
  const parts = (big, bigUnit, small, smallUnit) =>
    `${big}${THIN}${bigUnit}${small ? ` ${small}${THIN}${smallUnit}` : ''}`;
  const min = Math.floor(s / 60);
  if (min < 60) return parts(min, 'min', Math.floor(s % 60), 's');
  const hours = Math.floor(min / 60);
  if (hours < 24) return parts(hours, 'h', min % 60, 'min');
  return parts(Math.floor(hours / 24), 'd', hours % 24, 'h');
}

/** How long ago, or how far ahead. */
export function relative(ms, now = Date.now()) {
  const away = now - ms;
  if (Math.abs(away) < 1500) return 'now';
  // One unit: the exact time is its title.
  const whole = Math.abs(away) < 59_500 ? `${Math.round(Math.abs(away) / 1000)}${THIN}s` : duration(Math.abs(away)).split(' ')[0];
  return away > 0 ? `${whole} ago` : `in ${whole}`;
}

/** The exact moment, here and in UTC. */
export function exact(ms) {
  const date = new Date(ms);
  if (Number.isNaN(date.getTime())) return '';
  return `${date.toLocaleString()} (${date.toISOString()})`;
}

/** 2 kB, 3.1 MB. */
export function bytes(value) {
  const units = ['B', 'kB', 'MB', 'GB'];
  let at = 0;
  while (value >= 1000 && at < units.length - 1) {
    value /= 1000;
    at += 1;
  }
  return `${value < 10 && at > 0 ? value.toFixed(1) : Math.round(value)}${THIN}${units[at]}`;
}

/** Milliseconds since 1970 of what the cluster says; NaN if it is none. */
export const moment = (text) => (text ? Date.parse(text) : NaN);

/** As much as fits in a cell. */
export function short(text, most = 80) {
  const points = [...String(text).slice(0, most * 2 + 2)];
  return points.length > most ? `${points.slice(0, most - 1).join('')}…` : points.join('');
}

/** A node's name, or the first digits of its id. */
export const nodeName = (node) => (node ? node.name || String(node.id).slice(0, 8) : DASH);
