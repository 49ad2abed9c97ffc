// Lines of the runs shown: ROC and precision-recall curves of all frames pooled, and the loss against the step.

const square = (width) => Math.min(Math.max(width * 0.72, 240), 380);

function curveFigure(title, sentence, spec, valueOf) {
  const frame = h("div", { class: "frame" });
  const figure = h("figure", {}, h("figcaption", {}, h("h3", {}, title), h("p", {}, sentence)), frame, legend(valueOf));
  return [figure, () => chart(frame, { label: `${title}; arrow keys read values`, height: square, ...spec })];
}

// Points in rising x: what is read from a curve does not depend on where it began.
function rising(curve) {
  const order = curve.x.map((_, i) => i).sort((a, b) => curve.x[a] - curve.x[b] || a - b);
  return { x: order.map((i) => curve.x[i]), y: order.map((i) => curve.y[i]) };
}

const curvesOf = new Map();

function curveOf(run, name) {
  const key = `${name} ${run}`;
  if (!curvesOf.has(key)) curvesOf.set(key, { run, ...rising(data.runs[run][name]) });
  return curvesOf.get(key);
}

function drawCurves() {
  const share = data.num_frames ? data.num_positive / data.num_frames : 0;
  const unit = { x: [0, 1], y: [0, 1] };
  on("runs", () => {
    const figures = [
      curveFigure(
        "ROC",
        "How many of the anomalous frames are found, for the normal frames that are taken for one. Dotted: chance.",
        {
          ...unit,
          lines: state.runs.map((run) => curveOf(run, "roc")),
          xLabel: "false positive rate",
          yLabel: "true positive rate",
          guides: [{ x: [0, 1], y: [0, 1] }],
          read: (x) => `false positive rate ${number(x)}`,
        },
        (run) => `AUC ${number(data.runs[run].numbers.auc)}`,
      ),
      curveFigure(
        "Precision and recall",
        `How many of the frames called anomalous are. Dotted: calling every frame anomalous, ${percent(share)}.`,
        {
          ...unit,
          lines: state.runs.map((run) => curveOf(run, "pr")),
          xLabel: "recall",
          yLabel: "precision",
          guides: [{ x: [0, 1], y: [share, share] }],
          read: (x) => `recall ${number(x)}`,
        },
        (run) => `AP ${number(data.runs[run].numbers.ap)}`,
      ),
    ];
    byId("curve-figures").replaceChildren(...figures.map(([figure]) => figure));
    figures.forEach(([, draw]) => draw());
  });
}

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
