// The keyboard in the view of a video. Fields, lists and buttons keep the keys that are theirs.

const step = (frames) => seek(Math.floor(view.player.frame()) + frames);
const second = (way) => seek(view.player.frame() + way * view.player.rate());

const KEYS = {
  " ": () => view.player.toggle(),
  ArrowLeft: (event) => (event.shiftKey ? jumpToClip(-1) : second(-1)),
  ArrowRight: (event) => (event.shiftKey ? jumpToClip(1) : second(1)),
  ",": () => step(-1),
  ".": () => step(1),
  Home: () => seek(0),
  End: () => seek(view.video.frames - 1),
  e: () => jumpToEvent(1),
  E: () => jumpToEvent(-1),
  n: () => stepVideo(1),
  p: () => stepVideo(-1),
  "+": () => view.timeline.zoom(1.6),
  "=": () => view.timeline.zoom(1.6),
  "-": () => view.timeline.zoom(1 / 1.6),
  0: () => view.timeline.fit(),
  Escape: () => leaveVideo(),
};

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || byId("help").open) return;
  const { target } = event;
  if (target.closest("input, select, textarea")) return;
  if (event.key === "?") {
    event.preventDefault();
    byId("help").showModal();
    return;
  }
  if (!view || !(event.key in KEYS)) return;
  if (event.key === " " && target.closest("button, summary")) return;
  event.preventDefault();
  KEYS[event.key](event);
}
