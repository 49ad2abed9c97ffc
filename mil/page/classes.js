// The classes of anomaly: one number of each run per class, as text over a bar.

function drawClasses() {
  const order = { key: "kind", down: false };
  const sortBy = (key) => {
    order.down = order.key === key ? !order.down : key !== "kind";
    order.key = key;
    draw();
    byId("class-table").querySelector(`[data-key="${key}"]`).focus();
  };
  const draw = () => {
    const metric = byId("class-metric").value;
    const kinds = new Map();
    for (const run of state.runs) {
      for (const row of data.runs[run].classes) {
        if (!kinds.has(row.kind)) kinds.set(row.kind, { kind: row.kind, videos: row.videos });
        kinds.get(row.kind)[run] = row[metric];
      }
    }
    if (!(order.key in { kind: 1, videos: 1 }) && !state.runs.includes(Number(order.key)))
      Object.assign(order, { key: "kind", down: false });
    byId("classes").hidden = !kinds.size;
    const head = (key, title, kind) => sortHead("th", key, title, kind, order, sortBy);
    byId("class-table").replaceChildren(
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          head("kind", "Class", ""),
          head("videos", "Videos", "num"),
          state.runs.map((run) =>
            head(String(run), [swatch(run), h("span", { class: "name" }, data.runs[run].name)], "per-run"),
          ),
        ),
      ),
      h(
        "tbody",
        {},
        sorted([...kinds.values()], (row) => row[order.key], order.down).map((row) =>
          h(
            "tr",
            {},
            h("th", { scope: "row" }, row.kind),
            h("td", { class: "num" }, row.videos),
            state.runs.map((run) => h("td", { class: "per-run" }, meter(row[run], run))),
          ),
        ),
      ),
    );
  };
  byId("class-metric").addEventListener("change", draw);
  on("runs", draw);
}

function meter(value, run) {
  const bar = h("span", { class: `meter ${runClass(run)}` }, h("span", {}), h("b", {}, number(value)));
  bar.firstChild.style.width = `${100 * (value ?? 0)}%`;
  return bar;
}
