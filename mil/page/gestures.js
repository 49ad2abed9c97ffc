// Mouse, pen and fingers on the timeline: click seeks, drag pans what is zoomed and scrubs what is not, two fingers or
// ctrl and the wheel zoom. The plain wheel scrolls the page, unless the timeline has the focus.

const SLOP = 4; // pixels that a click may move

function listenTo(canvas, overview, timeline, { seek, hover }) {
  const pointers = new Map();
  let start = null;
  let pinch = null;
  const place = (event) => event.clientX - canvas.getBoundingClientRect().left;

  const spread = () => {
    const [a, b] = [...pointers.values()];
    return { distance: Math.max(Math.abs(a - b), 8), middle: (a + b) / 2 };
  };

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, place(event));
    if (pointers.size === 1) start = { x: place(event), last: place(event), moved: false };
    if (pointers.size === 2) {
      pinch = spread();
      start = null;
    }
  });
  canvas.addEventListener("pointermove", (event) => {
    const x = place(event);
    if (pointers.has(event.pointerId)) pointers.set(event.pointerId, x);
    if (pinch && pointers.size === 2) {
      const now = spread();
      const around = timeline.frameAtX(pinch.middle);
      timeline.zoom(now.distance / pinch.distance, around);
      timeline.pan(timeline.frameAtX(pinch.middle) - timeline.frameAtX(now.middle));
      pinch = now;
    } else if (start) {
      start.moved ||= Math.abs(x - start.x) > SLOP;
      if (start.moved && timeline.isZoomed()) timeline.pan(timeline.frameAtX(start.last) - timeline.frameAtX(x));
      else if (start.moved) seek(timeline.frameAtX(x));
      start.last = x;
    }
    if (event.pointerType !== "touch") hover(timeline.frameAtX(x), event);
  });
  const end = (event) => {
    if (start && !start.moved && event.type === "pointerup") seek(timeline.frameAtX(place(event)));
    pointers.delete(event.pointerId);
    start = null;
    if (pointers.size < 2) pinch = null;
  };
  canvas.addEventListener("pointerup", end);
  canvas.addEventListener("pointercancel", end);
  canvas.addEventListener("pointerleave", () => hover(null));
  canvas.addEventListener(
    "wheel",
    (event) => {
      const sideways = Math.abs(event.deltaX) > Math.abs(event.deltaY) || event.shiftKey;
      if (!sideways && !event.ctrlKey && !event.metaKey && document.activeElement !== canvas) return;
      event.preventDefault();
      const x = place(event);
      if (sideways) {
        const moved = event.deltaX || event.deltaY;
        timeline.pan(timeline.frameAtX(x + moved) - timeline.frameAtX(x));
      } else
        timeline.zoom(
          Math.exp(-Math.max(-120, Math.min(120, event.deltaY)) / (event.ctrlKey ? 160 : 320)),
          timeline.frameAtX(x),
        );
    },
    { passive: false },
  );

  // the whole video below: takes the view, or the cursor, to where it is pressed
  const goTo = (event) => {
    const frame = timeline.overviewFrameAtX(event.clientX - overview.getBoundingClientRect().left);
    const { from, to } = timeline.geometry();
    if (timeline.isZoomed()) timeline.look(frame - (to - from) / 2, to - from);
    else seek(frame);
  };
  overview.addEventListener("pointerdown", (event) => {
    overview.setPointerCapture(event.pointerId);
    goTo(event);
  });
  overview.addEventListener("pointermove", (event) => overview.hasPointerCapture(event.pointerId) && goTo(event));
}
