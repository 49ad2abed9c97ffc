// ROC and precision-recall curves of the runs shown, frames of all videos pooled.

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
