// The summary: a row for each group of runs that differ by their seed alone, opening to its runs. It sorts, and it
// chooses which runs the rest of the page shows.

const METRICS = [
  ["auc", "AUC"],
  ["ap", "AP"],
  ["pr_auc", "PR-AUC"],
];

const badgesOf = (run) => [
  run.optimistic && badge("bad", "OPTIMISTIC", `The weights were selected with test labels: ${run.selected_by}`),
  run.random_weights && badge("bad", "random weights", "The features come from an untrained net"),
];

const tick = (props, ...label) =>
  h("label", { class: "tick-box" }, h("input", { type: "checkbox", ...props }), ...label);

// The AUC of each seed as dots on one scale for the table, with a bar at the mean.
function strip(group, low, high) {
  const x = (v) => 6 + ((v - low) / (high - low || 1)) * 128;
  const values = group.runs.map((i) => data.runs[i].numbers.auc).filter(known);
  return svg(
    "svg",
    {
      width: 140,
      height: 18,
      viewBox: "0 0 140 18",
      role: "img",
      "aria-label": `AUC of each seed: ${values.map((v) => number(v)).join(", ")}`,
    },
    svg("line", { class: "grid", x1: 6, x2: 134, y1: 9, y2: 9 }),
    values.map((v) => svg("circle", { class: "seed", cx: x(v), cy: 9, r: 3 })),
    known(group.auc_mean) &&
      svg("line", { class: "mean", x1: x(group.auc_mean), x2: x(group.auc_mean), y1: 2, y2: 16 }),
  );
}

function runRow(index) {
  const run = data.runs[index];
  const shown = state.runs.includes(index);
  return h(
    "tr",
    { class: "one-run" },
    h(
      "th",
      { scope: "row" },
      h(
        "div",
        { class: "who" },
        tick(
          { checked: shown, onchange: (event) => toggleRun(index, event.target.checked) },
          shown && swatch(index),
          h("span", { class: "name" }, breakable(run.name)),
        ),
        " ",
        badgesOf(run),
      ),
    ),
    h("td", { class: "rule-of", colspan: 2 }, run.selected_by),
    METRICS.map(([key]) => h("td", { class: "num" }, number(run.numbers[key]))),
    h("td", { class: "strip" }, known(run.threshold) ? `threshold ${score(run.threshold)}` : "no threshold"),
  );
}

function groupRow(group, open, toggle, low, high) {
  const shown = group.runs.filter((i) => state.runs.includes(i));
  const choose = (event) => {
    const others = state.runs.filter((i) => !group.runs.includes(i));
    chooseRuns(event.target.checked ? [...others, group.runs[0]] : others);
  };
  const value = (key) => [
    number(group[`${key}_mean`]),
    known(group[`${key}_sd`]) && h("span", { class: "deviation" }, ` ± ${number(group[`${key}_sd`])}`),
  ];
  return h(
    "tr",
    { class: "group" },
    h(
      "th",
      { scope: "row" },
      h(
        "div",
        { class: "who" },
        h(
          "button",
          { class: "opener", "aria-expanded": String(open), "aria-label": `Runs of ${group.name}`, onclick: toggle },
          h("span", { class: "arrow", "aria-hidden": "true" }),
        ),
        h(
          "div",
          {},
          tick(
            { checked: shown.length > 0, onchange: choose },
            h("span", { class: "name" }, breakable(group.name)),
            shown.map(swatch),
          ),
          " ",
          badgesOf({
            optimistic: group.runs.some((i) => data.runs[i].optimistic),
            selected_by: data.runs[group.runs[0]].selected_by,
            random_weights: group.runs.some((i) => data.runs[i].random_weights),
          }),
        ),
      ),
    ),
    h("td", { class: "head-name" }, group.head),
    h("td", { class: "num seeds" }, group.runs.length),
    METRICS.map(([key]) => h("td", { class: "num" }, value(key))),
    h("td", { class: "strip" }, strip(group, low, high)),
  );
}

const SUMMARY_COLUMNS = [
  ["name", "Runs", ""],
  ["head", "Head", "head-name"],
  ["seeds", "Seeds", "num seeds"],
  ["auc", "AUC", "num"],
  ["ap", "AP", "num"],
  ["pr_auc", "PR-AUC", "num"],
];

function drawSummary() {
  const open = new Set(data.groups.length === 1 ? [data.groups[0].name] : []);
  const values = data.runs.map((run) => run.numbers.auc).filter(known);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const order = { key: "auc", down: true };
  const keyOf = (group) =>
    ({ name: group.name, head: group.head, seeds: group.runs.length })[order.key] ?? group[`${order.key}_mean`];
  const sortBy = (key) => {
    order.down = order.key === key ? !order.down : !["name", "head"].includes(key);
    order.key = key;
    draw();
    byId("summary-table").querySelector(`[data-key="${key}"]`).focus();
  };
  const draw = () => {
    const groups = sorted(data.groups, keyOf, order.down);
    byId("summary-table").replaceChildren(
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          SUMMARY_COLUMNS.map(([key, title, kind]) => sortHead("th", key, title, kind, order, sortBy)),
          h(
            "th",
            { scope: "col", class: "strip" },
            values.length ? `AUC by seed, ${number(low, 2)} to ${number(high, 2)}` : "AUC by seed",
          ),
        ),
      ),
      ...groups.map((group) => {
        const toggle = () => {
          if (!open.delete(group.name)) open.add(group.name);
          draw();
          byId("summary-table")
            .querySelector(`[aria-label=${CSS.escape(`Runs of ${group.name}`)}]`)
            .focus();
        };
        const isOpen = open.has(group.name);
        return h(
          "tbody",
          {},
          groupRow(group, isOpen, toggle, low, high),
          isOpen && group.runs.map(runRow),
          isOpen && detailRow(group),
        );
      }),
    );
  };
  on("runs", draw);
  narrow.addEventListener("change", draw);
}
