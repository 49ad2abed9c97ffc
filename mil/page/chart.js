// Lines in axes, as SVG: values are read with the pointer, or with the arrow keys while the chart has the focus.

const EDGE = { left: 44, right: 18, bottom: 36 };

// Points of a line in rising x; nulls break it.
function pathOf(line, x, y) {
  let pen = "M";
  let out = "";
  line.x.forEach((value, i) => {
    if (!known(line.y[i])) {
      pen = "M";
      return;
    }
    out += `${pen}${x(value).toFixed(1)} ${y(line.y[i]).toFixed(1)}`;
    pen = "L";
  });
  return out;
}

// The line's value at x: of the nearest point (`snap`), or between its neighbours.
function readLine(line, x, snap) {
  const { x: xs, y: ys } = line;
  let after = xs.findIndex((value) => value > x);
  if (after < 0) after = xs.length;
  if (after === 0) return ys[0];
  if (after === xs.length) return ys[xs.length - 1];
  const part = (x - xs[after - 1]) / (xs[after] - xs[after - 1]);
  if (snap) return ys[part < 0.5 ? after - 1 : after];
  return ys[after - 1] + part * (ys[after] - ys[after - 1]);
}

// spec: {label, x: [low, high], y: [low, high], xLabel, yLabel, height(width), lines: [{run, x, y}], guides: [path points],
// snap, read: (x) => title}
function chart(frame, spec) {
  const tip = tipIn(frame);
  const draw = responsive(frame, (width) => {
    const {
      lines,
      x: [x0, x1],
      y: [y0, y1],
    } = spec;
    const height = Math.round(spec.height(width));
    const top = spec.yLabel ? 24 : 8; // room for the label above the axis
    const x = (v) => EDGE.left + ((v - x0) / (x1 - x0 || 1)) * (width - EDGE.left - EDGE.right);
    const y = (v) => height - EDGE.bottom - ((v - y0) / (y1 - y0 || 1)) * (height - top - EDGE.bottom);
    const rule = svg("line", { class: "rule", y1: top, y2: height - EDGE.bottom, visibility: "hidden" });
    const dots = lines.map((line) =>
      svg("circle", { class: `dot ${runClass(line.run)}`, r: 3.5, visibility: "hidden" }),
    );
    const axis = (values, build) => values.map((v) => build(v, values.length > 1 ? values[1] - values[0] : 1));
    let at = (x0 + x1) / 2;
    const show = (value, level) => {
      at = Math.min(Math.max(value, x0), x1);
      if (spec.snap && lines.length)
        at = nearest(
          lines.flatMap((line) => line.x),
          at,
        );
      const rows = lines.map((line) => ({
        run: line.run,
        name: data.runs[line.run].name,
        value: readLine(line, at, spec.snap),
      }));
      rule.setAttribute("visibility", "visible");
      rule.setAttribute("x1", x(at));
      rule.setAttribute("x2", x(at));
      rows.forEach((row, i) => {
        dots[i].setAttribute("visibility", known(row.value) ? "visible" : "hidden");
        dots[i].setAttribute("cx", x(at));
        dots[i].setAttribute("cy", y(row.value ?? y0));
      });
      tip.show(
        x(at),
        level,
        spec.read(at),
        rows.map((row) => ({ ...row, value: number(row.value) })),
      );
    };
    const hide = () => {
      for (const node of [rule, ...dots]) node.setAttribute("visibility", "hidden");
      tip.hide();
    };
    const move = (event) => {
      const box = frame.getBoundingClientRect();
      const inner = (event.clientX - box.left - EDGE.left) / (width - EDGE.left - EDGE.right);
      show(x0 + inner * (x1 - x0), event.clientY - box.top);
    };
    const press = (event) => {
      const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (event.key === "Escape") hide();
      if (!way) return;
      event.preventDefault();
      event.stopPropagation();
      const points = [...new Set(lines.flatMap((line) => line.x))].sort((a, b) => a - b);
      const next = way > 0 ? points.find((v) => v > at) : points.findLast((v) => v < at);
      show(spec.snap ? (next ?? at) : at + way * (x1 - x0) * 0.02, top);
      announce(
        `${spec.read(at)}: ${lines.map((line) => `${data.runs[line.run].name} ${number(readLine(line, at, spec.snap))}`).join(", ")}`,
      );
    };
    frame.querySelector("svg")?.remove();
    frame.prepend(
      svg(
        "svg",
        {
          width,
          height,
          class: "chart",
          role: "img",
          tabindex: 0,
          "aria-label": spec.label,
          onpointermove: move,
          onpointerdown: move,
          onpointerleave: hide,
          onblur: hide,
          onkeydown: press,
        },
        axis(ticks(y0, y1, Math.max((height - top - EDGE.bottom) / 42, 2.5)), (v, step) => [
          svg("line", { class: "grid", x1: EDGE.left, x2: width - EDGE.right, y1: y(v), y2: y(v) }),
          svg("text", { class: "tick", x: EDGE.left - 7, y: y(v) + 4, "text-anchor": "end" }, tickText(v, step)),
        ]),
        axis(ticks(x0, x1, width / 80), (v, step) =>
          svg(
            "text",
            { class: "tick", x: x(v), y: height - EDGE.bottom + 17, "text-anchor": "middle" },
            tickText(v, step),
          ),
        ),
        svg("text", { class: "axis", x: width - EDGE.right, y: height - 3, "text-anchor": "end" }, spec.xLabel),
        svg("text", { class: "axis", x: 0, y: 11 }, spec.yLabel),
        (spec.guides ?? []).map((guide) => svg("path", { class: "guide", d: pathOf(guide, x, y) })),
        lines.map((line) =>
          svg("path", {
            class: `line ${runClass(line.run)}`,
            d: pathOf(line, x, y),
            "stroke-dasharray": dashOf(line.run).join(" ") || null,
          }),
        ),
        spec.points &&
          lines.map((line) =>
            line.x.map(
              (v, i) =>
                known(line.y[i]) &&
                svg("circle", { class: `point ${runClass(line.run)}`, cx: x(v), cy: y(line.y[i]), r: 2 }),
            ),
          ),
        rule,
        dots,
      ),
    );
  });
  return draw;
}

const nearest = (values, wanted) =>
  values.reduce((best, v) => (Math.abs(v - wanted) < Math.abs(best - wanted) ? v : best), values[0]);
