// What every drawing shares: being redrawn at its width, and a box of values beside the pointer.

// Calls draw(width) now and whenever the node's width changes; returns a function that draws again.
function responsive(node, draw) {
  let width = 0;
  const again = () => width > 0 && draw(width);
  new ResizeObserver(() => {
    const now = Math.floor(node.clientWidth);
    if (now === width) return;
    width = now;
    again();
  }).observe(node);
  return again;
}

// A box in `frame` (positioned) that shows a title and a row for each {run, name, value}.
function tipIn(frame) {
  const box = h("div", { class: "tip", "aria-hidden": "true", hidden: true });
  frame.append(box);
  return {
    show(x, y, title, rows) {
      box.replaceChildren(
        h("strong", {}, title),
        ...rows.map((row) =>
          h(
            "span",
            { class: "tip-row" },
            known(row.run) && swatch(row.run),
            h("span", {}, row.name),
            h("b", {}, row.value),
          ),
        ),
      );
      box.hidden = false;
      const right = x + 14 + box.offsetWidth > frame.clientWidth;
      box.style.left = `${Math.max(0, right ? x - 14 - box.offsetWidth : x + 14)}px`;
      box.style.top = `${Math.max(0, Math.min(y, frame.clientHeight - box.offsetHeight))}px`;
    },
    hide() {
      box.hidden = true;
    },
  };
}

// Who is drawn, with a number beside each.
const legend = (valueOf) =>
  h(
    "ul",
    { class: "legend" },
    state.runs.map((run) =>
      h("li", {}, swatch(run), h("span", { class: "name" }, data.runs[run].name), h("b", {}, valueOf(run))),
    ),
  );

const badge = (kind, text, title) => h("span", { class: `badge ${kind}`, title }, text);
