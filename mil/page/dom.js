// Elements, text and sorting. Children that are strings become text nodes: no name in the data can become markup.

const byId = (id) => document.getElementById(id);

function fill(node, props, children) {
  for (const [key, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat(2).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

const h = (name, props, ...children) => fill(document.createElement(name), props, children);

const svg = (name, props, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", name), props, children);

// A name that breaks behind its punctuation before it breaks anywhere.
const breakable = (text) => text.split(/(?<=[_\-.\/=])/).flatMap((part, i) => (i ? [h("wbr"), part] : [part]));

const MISSING = "–";
const known = (x) => x !== null && x !== undefined;
const number = (x, digits = 3) => (known(x) ? x.toFixed(digits).replace("-", "−") : MISSING);
// a threshold of 0.0002 is not 0.000
const score = (x) => (known(x) && x !== 0 && Math.abs(x) < 0.001 ? x.toExponential(0).replace("-", "−") : number(x));
const thousands = new Intl.NumberFormat("en");
const whole = (x) => (known(x) ? thousands.format(x) : MISSING);
const percent = (x, digits = 1) => (known(x) ? `${(100 * x).toFixed(digits)} %` : MISSING);
const plural = (count, one, many = `${one}s`) => `${whole(count)} ${count === 1 ? one : many}`;

// 75.25 -> "1:15.3"; hours only where there are some
function clock(seconds, digits = 1) {
  const scale = 10 ** digits;
  const total = Math.round(Math.max(seconds, 0) * scale);
  const rest = total % (60 * scale);
  const minutes = Math.floor(total / (60 * scale));
  const tail = (rest / scale).toFixed(digits).padStart(digits ? 3 + digits : 2, "0");
  if (minutes < 60) return `${minutes}:${tail}`;
  return `${Math.floor(minutes / 60)}:${String(minutes % 60).padStart(2, "0")}:${tail}`;
}

// Round numbers that cut [low, high] in about `count` parts.
function ticks(low, high, count) {
  const rough = (high - low) / Math.max(count, 1);
  if (!(rough > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((k) => k * power).find((k) => k >= rough * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k += 1) found.push(k * step);
  return found;
}

// As many digits as tell neighbouring ticks apart.
function tickText(value, step) {
  const digits = Math.max(0, Math.min(6, -Math.floor(Math.log10(step) + 1e-9)));
  return value === 0 ? "0" : value.toFixed(digits).replace("-", "−");
}

let announcing = 0;

// Says something to those who listen instead of looking; only the last of a burst.
function announce(text) {
  clearTimeout(announcing);
  announcing = setTimeout(() => {
    byId("live").textContent = text;
  }, 250);
}

// A column's title that sorts by it; the one in use says which way.
function sortHead(tag, key, title, kind, order, sortBy) {
  const way = order.key === key ? (order.down ? "descending" : "ascending") : null;
  const mark = h("span", { class: "way", "aria-hidden": "true" }, way ? (order.down ? "▾" : "▴") : "");
  return h(
    tag,
    { scope: "col", class: kind, "aria-sort": way },
    h("button", { class: "sort", "data-key": key, onclick: () => sortBy(key) }, title, mark),
  );
}

// A sorted copy; what has no value stays at the end either way.
function sorted(items, keyOf, down) {
  const way = down ? -1 : 1;
  return items
    .map((item) => [keyOf(item), item])
    .sort(([a], [b]) => {
      if (!known(a) || !known(b)) return Number(!known(a)) - Number(!known(b));
      return way * (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
    })
    .map(([, item]) => item);
}
