// The view of one video: player, readout and timeline in step.

let view = null; // what is open: {index, video, timeline, player, ...}

function openVideo(index, frame) {
  const onTimeline = document.activeElement?.id === "timeline";
  closeVideo();
  const video = data.videos[index];
  const at = listed.indexOf(index);
  byId("video-title").replaceChildren(...breakable(video.id));
  byId("video-badge").replaceChildren(labelBadge(video));
  byId("video-facts").textContent = [
    video.fps
      ? `${clock(video.frames / video.fps)} at ${+video.fps.toFixed(3)} frames per second`
      : "frame rate not known",
    plural(video.frames, "frame"),
    video.clip && plural(video.clip.count, "clip"),
    plural(video.events.length, "event"),
  ]
    .filter(Boolean)
    .join(" · ");
  byId("video-place").textContent = at >= 0 ? `${whole(at + 1)} of ${whole(listed.length)}` : "";
  document.title = `${video.id} · wsvad report`;
  byId("overview").hidden = true;
  byId("video").hidden = false;

  // canvases anew: nothing of the last video listens to them
  const canvas = h("canvas", {
    id: "timeline",
    tabindex: 0,
    role: "slider",
    "aria-label": "Position in the video",
    "aria-valuemin": 0,
    "aria-valuemax": video.frames - 1,
  });
  const small = h("canvas", { id: "whole", "aria-hidden": "true" });
  const frame_ = h("div", { class: "frame" }, canvas);
  byId("timeline-holder").replaceChildren(frame_, small);
  byId("player").replaceChildren();
  const tip = tipIn(frame_);
  const timeline = timelineOf(video, canvas, small, () => (byId("zoom-fit").disabled = !timeline?.isZoomed()));
  view = { index, video, timeline, canvas, update: null };
  view.player = playerOf(video, byId("player"), {
    onMove: (at_, playing) => moved(at_, playing),
    onState: refreshPlayer,
  });
  listenTo(canvas, small, timeline, {
    seek,
    hover(at_, event) {
      timeline.point(at_);
      if (at_ === null) return tip.hide();
      const box = canvas.getBoundingClientRect();
      const shown = shownFrame(video, at_);
      const rows = state.runs.map((run) => ({
        run,
        name: data.runs[run].name,
        value: number(scoreAt(video, run, shown)),
      }));
      return tip.show(
        event.clientX - box.left,
        event.clientY - box.top,
        `${timeText(video, at_)} · ${truthText(video, shown)}`,
        rows,
      );
    },
  });
  drawVideoRuns();
  responsive(frame_, () => timeline.drawNow());
  byId("zoom-fit").disabled = true;
  refreshPlayer();
  view.player.seek(frame);
  timeline.drawNow();
  (onTimeline ? canvas : byId("video-title")).focus({ preventScroll: true });
  window.scrollTo(0, 0);
}

function closeVideo() {
  view?.player.close();
  view = null;
}

// The readout for the runs shown now.
function drawVideoRuns() {
  if (!view) return;
  const [table, update] = runTable(view.video, view.index);
  view.update = update;
  byId("readout").replaceChildren(table);
  byId("event-list").replaceChildren(eventList(view.video, seek));
  const together = view.timeline.isShared();
  byId("scale-own").hidden = state.runs.length < 2;
  byId("scale-own").setAttribute("aria-pressed", String(!together));
  update(shownFrame(view.video, view.player?.frame() ?? 0));
  view.timeline.draw();
}

function seek(frame) {
  view.player.seek(frame);
}

let savingHash = 0;

function moved(frame, playing) {
  const { video, timeline, canvas } = view;
  const at = shownFrame(video, frame);
  timeline.moveTo(frame, true);
  view.update?.(at);
  const clip = clipAt(video, at);
  byId("now").textContent = video.fps
    ? `${clock(frame / video.fps, 2)} / ${clock(video.frames / video.fps)}`
    : `${whole(at)} / ${whole(video.frames)}`;
  byId("now-frame").textContent =
    `frame ${whole(at)}${clip === null ? "" : ` · clip ${whole(clip + 1)} of ${whole(video.clip.count)}`} · ${truthText(video, at)}`;
  if (playing) return;
  const words = spoken(video, frame);
  canvas.setAttribute("aria-valuenow", at);
  canvas.setAttribute("aria-valuetext", words);
  if (document.activeElement !== canvas) announce(words); // a slider in focus says its value itself
  clearTimeout(savingHash);
  savingHash = setTimeout(() => view?.video === video && setHash(hashOf(video, view.player.frame())), 200);
}

function refreshPlayer() {
  if (!view?.player) return;
  const { video, player } = view;
  const button = byId("play");
  button.setAttribute("aria-label", player.playing() ? "Pause" : "Play");
  button.dataset.playing = String(player.playing());
  const has = video.src !== null && !player.failed();
  byId("stage").classList.toggle("bare", !has);
  byId("player").hidden = !has;
  byId("player-note").replaceChildren(...playerNote(video, player));
  if (!player.playing()) moved(player.frame(), false);
}

function playerNote(video, player) {
  if (video.src === null) return ["No video file is linked; the timeline works without one."];
  if (player.failed()) {
    return [
      "This browser cannot play ",
      h("code", {}, video.src),
      ": it is not where the report expects it, or in a format that browsers do not play. The timeline works all the same.",
    ];
  }
  const surplus = player.surplus();
  if (surplus !== null && Math.abs(surplus) > Math.max(0.5, (0.02 * video.frames) / video.fps)) {
    return [
      `The file is ${number(Math.abs(surplus), 1)} s ${surplus > 0 ? "longer" : "shorter"} than the frames that were scored.`,
    ];
  }
  return [];
}

// The next annotated event behind the cursor, or before it; round the end.
function jumpToEvent(way) {
  const { video, player } = view;
  const starts = video.events.map(([start]) => start).sort((a, b) => a - b);
  if (!starts.length) return announce("No annotated events");
  const here = Math.floor(player.frame());
  const next = way > 0 ? starts.find((start) => start > here) : starts.findLast((start) => start < here);
  return seek(next ?? (way > 0 ? starts[0] : starts.at(-1)));
}

function jumpToClip(way) {
  const { video, player } = view;
  const here = shownFrame(video, player.frame());
  if (!video.clip) return seek(here + way);
  const clip = clipAt(video, here);
  const back = way < 0 && clipStart(video, clip) < here ? 0 : way;
  return seek(clipStart(video, Math.min(Math.max(clip + back, 0), video.clip.count - 1)));
}

// Another video of the list as it is filtered and sorted.
function stepVideo(way) {
  const at = listed.indexOf(view.index);
  const next = listed[at + way] ?? (at < 0 ? listed[0] : undefined);
  if (next === undefined) return announce(way > 0 ? "The last video of the list" : "The first video of the list");
  location.hash = hashOf(data.videos[next], 0);
  return null;
}
