// Sorting of tables and lists.

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
