// The address: #video=ID&t=SECONDS&runs=0,3 opens a video; anything else is the overview. Back and forward work.
// A video of unknown frame rate has f=FRAME instead of t.

function readHash() {
  const found = {};
  for (const part of location.hash.slice(1).split("&")) {
    const at = part.indexOf("=");
    if (at < 1) continue;
    try {
      found[part.slice(0, at)] = decodeURIComponent(part.slice(at + 1));
    } catch {
      // a broken link: that part of it says nothing
    }
  }
  const time = (text) => (text !== undefined && Number.isFinite(Number(text)) ? Math.max(Number(text), 0) : null);
  return {
    video: found.video ?? null,
    seconds: time(found.t),
    frame: time(found.f),
    runs:
      found.runs
        ?.split(",")
        .filter((text) => /^\d+$/.test(text))
        .map(Number) ?? null,
  };
}

function hashOf(video, frame) {
  const parts = [];
  if (video) {
    parts.push(`video=${encodeURIComponent(video.id)}`);
    if (frame > 0) parts.push(video.fps ? `t=${+(frame / video.fps).toFixed(3)}` : `f=${Math.floor(frame)}`);
  }
  if (!sameRuns(state.runs, defaultRuns())) parts.push(`runs=${state.runs.join(",")}`);
  return parts.length ? `#${parts.join("&")}` : "#";
}

function setHash(hash) {
  if (hash === "#" && !location.hash.includes("=")) return; // an anchor of the overview stays
  if (hash !== location.hash) history.replaceState(null, "", hash);
}
