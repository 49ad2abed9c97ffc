// Scores of anomalous frames upwards, of normal ones downwards, each as a share of its own kind; one figure per run.

const BARS = { left: 44, right: 10, bottom: 24, height: 200 };
const DECADES = 4; // below the highest bar, where the scale is logarithmic

function histogramFigure(run, logarithmic) {
  const { name, histogram, threshold } = data.runs[run];
  const { edges } = histogram;
  const total = (counts) =>
    Math.max(
      counts.reduce((a, b) => a + b, 0),
      1,
    );
  const shares = {
    anomalous: histogram.anomalous.map((n) => n / total(histogram.anomalous)),
    normal: histogram.normal.map((n) => n / total(histogram.normal)),
  };
  const most = Math.max(...shares.anomalous, ...shares.normal, 1e-9);
  const part = (share) =>
    logarithmic ? Math.max(0, 1 + Math.log10(Math.max(share, 1e-12) / most) / DECADES) : share / most;
  const levels = logarithmic ? [1, 0.1, 0.01, 0.001].filter((share) => share <= most) : ticks(0, most, 2).slice(1);
  const frame = h("div", { class: "frame" });
  const tip = tipIn(frame);
  const draw = () =>
    responsive(frame, (width) => {
      const { height } = BARS;
      const [low, high] = [edges[0], edges.at(-1)];
      const x = (v) => BARS.left + ((v - low) / (high - low || 1)) * (width - BARS.left - BARS.right);
      const middle = (height - BARS.bottom) / 2;
      const scale = middle - 8;
      const bar = (kind, i) => {
        const size = part(shares[kind][i]) * scale;
        const top = kind === "anomalous" ? middle - 1 - size : middle + 1;
        return svg("rect", {
          class: `bar ${kind}`,
          x: x(edges[i]) + 0.5,
          width: Math.max(x(edges[i + 1]) - x(edges[i]) - 1, 0.5),
          y: top,
          height: size,
        });
      };
      const show = (event) => {
        const box = frame.getBoundingClientRect();
        const at = event.clientX - box.left;
        const i = Math.min(Math.max(edges.findIndex((edge) => x(edge) > at) - 1, 0), edges.length - 2);
        const row = (kind) => ({ name: `${kind} frames`, value: percent(shares[kind][i], 2) });
        tip.show(at, event.clientY - box.top, `score ${number(edges[i])} – ${number(edges[i + 1])}`, [
          row("anomalous"),
          row("normal"),
        ]);
      };
      const line = known(threshold) && threshold >= low && threshold <= high;
      frame.querySelector("svg")?.remove();
      frame.prepend(
        svg(
          "svg",
          {
            width,
            height,
            class: "chart",
            role: "img",
            "aria-label": describe(name, shares, edges),
            onpointermove: show,
            onpointerdown: show,
            onpointerleave: tip.hide,
          },
          levels.flatMap((share) =>
            [-1, 1].map((way) => [
              svg("line", {
                class: "grid",
                x1: BARS.left,
                x2: width - BARS.right,
                y1: middle + way * part(share) * scale,
                y2: middle + way * part(share) * scale,
              }),
              svg(
                "text",
                { class: "tick", x: BARS.left - 7, y: middle + way * part(share) * scale + 4, "text-anchor": "end" },
                `${+(100 * share).toFixed(4)} %`,
              ),
            ]),
          ),
          shares.anomalous.map((_, i) => [bar("anomalous", i), bar("normal", i)]),
          svg("line", { class: "zero", x1: BARS.left, x2: width - BARS.right, y1: middle, y2: middle }),
          line &&
            svg("line", { class: "threshold", x1: x(threshold), x2: x(threshold), y1: 0, y2: height - BARS.bottom }),
          ticks(low, high, width / 80).map((v, i, list) =>
            svg(
              "text",
              { class: "tick", x: Math.min(Math.max(x(v), 12), width - 12), y: height - 6, "text-anchor": "middle" },
              tickText(v, list.length > 1 ? list[1] - list[0] : 0.1),
            ),
          ),
        ),
      );
    });
  return [
    h("figure", {}, h("figcaption", {}, h("h3", {}, swatch(run), h("span", { class: "name" }, name))), frame),
    draw,
  ];
}

function describe(name, shares, edges) {
  const mean = (kind) =>
    number(shares[kind].reduce((sum, share, i) => sum + (share * (edges[i] + edges[i + 1])) / 2, 0));
  return `Scores of ${name}: anomalous frames around ${mean("anomalous")}, normal frames around ${mean("normal")} on average`;
}

function drawHistograms() {
  const draw = () => {
    const figures = state.runs.map((run) => histogramFigure(run, byId("histogram-log").checked));
    byId("histogram-figures").replaceChildren(...figures.map(([figure]) => figure));
    figures.forEach(([, drawOne]) => drawOne());
  };
  byId("histogram-log").addEventListener("change", draw);
  on("runs", draw);
}
