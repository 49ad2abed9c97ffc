// Loss terms against the training step, and the looks at validation or test numbers on the way.

const MOST_TERMS = 6;

function seriesOf(kind) {
  const found = new Map();
  for (const run of state.runs) {
    const { steps, terms, looks } = data.runs[run].loss;
    const all =
      kind === "terms"
        ? Object.entries(terms).map(([name, y]) => [name, steps, y])
        : Object.entries(looks).map(([name, look]) => [name, look.steps, look.values]);
    for (const [name, x, y] of all) {
      if (!y.some(known)) continue;
      if (!found.has(name)) found.set(name, []);
      found.get(name).push({ run, x, y });
    }
  }
  return found;
}

const plainName = (name) => name.replace(/^loss\//, "");

function trainingFigure(name, lines, isLook) {
  const frame = h("div", { class: "frame" });
  const values = lines.flatMap((line) => line.y).filter(known);
  const bottom = Math.min(...values, isLook ? Infinity : 0);
  const top = Math.max(...values);
  const optimistic = name.includes("OPTIMISTIC");
  const title = plainName(name).replace(/^OPTIMISTIC\//, "");
  const spec = {
    label: `${title} against the training step; arrow keys read values`,
    x: [Math.min(...lines.map((line) => line.x[0])), Math.max(...lines.map((line) => line.x.at(-1)))],
    y: top > bottom ? [bottom, top + (top - bottom) * 0.05] : [bottom - 0.5, top + 0.5],
    lines,
    xLabel: "step",
    yLabel: "",
    snap: true,
    points: lines.every((line) => line.x.length <= 40),
    height: (width) => Math.min(Math.max(width * 0.5, 150), 200),
    read: (x) => `step ${whole(x)}`,
  };
  const caption = h(
    "figcaption",
    {},
    h("h3", {}, title, optimistic && badge("bad", "OPTIMISTIC", "Test labels were looked at while training")),
  );
  return [h("figure", {}, caption, frame), () => chart(frame, spec)];
}

function drawTraining() {
  let all = false;
  const draw = () => {
    const looks = [...seriesOf("looks")].map(([name, lines]) => trainingFigure(name, lines, true));
    const terms = [...seriesOf("terms")].sort(
      ([a], [b]) => Number(plainName(b) === "total") - Number(plainName(a) === "total"),
    );
    const shown = (all ? terms : terms.slice(0, MOST_TERMS)).map(([name, lines]) => trainingFigure(name, lines, false));
    const figures = [...looks, ...shown];
    byId("training").hidden = !figures.length;
    byId("training-figures").replaceChildren(...figures.map(([figure]) => figure));
    byId("training-legend").replaceChildren(legend((run) => data.runs[run].selected_by));
    figures.forEach(([, drawOne]) => drawOne());
    const more = byId("training-more");
    more.hidden = terms.length <= MOST_TERMS;
    more.textContent = all ? "Show fewer terms" : `Show all ${terms.length} terms`;
  };
  byId("training-more").addEventListener("click", () => {
    all = !all;
    draw();
  });
  on("runs", draw);
}
