// The clock of the video view: the video file where the browser plays it, else a clock of its own, so that the timeline
// plays all the same. Positions are frames, as fractions; frame f lasts from f to f + 1.

const ASSUMED_FPS = 25; // speed of playing without a file where the frame rate is not known

// onMove(frame, playing) whenever the position changes; onState() when it starts, stops or fails.
function playerOf(video, holder, { onMove, onState }) {
  const media =
    video.src === null
      ? null
      : h("video", {
          src: video.src,
          preload: "auto",
          playsinline: true,
          controls: true,
          "aria-label": `Video ${video.id}`,
        });
  let frame = 0;
  let usable = media !== null;
  let metadata = false;
  let expected = null; // time that was asked for: what it reports until then is older
  let running = null; // {at, frame} of the clock without a file
  let gone = false;

  const rate = () =>
    video.fps ??
    (metadata && media.duration > 0 && Number.isFinite(media.duration) ? video.frames / media.duration : ASSUMED_FPS);
  const playing = () => (usable ? !media.paused && !media.ended : running !== null);
  const move = (wanted) => {
    frame = Math.min(Math.max(wanted, 0), video.frames);
    onMove(frame, playing());
  };

  const beat = (now) => {
    if (gone || !playing()) return;
    if (usable) {
      if (!media.seeking) move(media.currentTime * rate());
    } else {
      move(running.frame + ((now - running.at) / 1000) * rate());
      if (frame >= video.frames) {
        running = null;
        onState();
        return;
      }
    }
    requestAnimationFrame(beat);
  };

  if (media) {
    const settled = () => {
      if (expected !== null && Math.abs(media.currentTime - Math.min(expected, media.duration || Infinity)) < 0.002)
        return;
      expected = null;
      if (!playing()) move(media.currentTime * rate());
    };
    media.addEventListener("loadedmetadata", () => {
      metadata = true;
      if (!video.fps && expected === null && frame > 0) media.currentTime = frame / rate();
      onState();
    });
    media.addEventListener("seeked", settled);
    media.addEventListener("play", () => {
      expected = null;
      onState();
      requestAnimationFrame(beat);
    });
    for (const name of ["pause", "ended"]) {
      media.addEventListener(name, () => {
        if (gone) return;
        if (expected === null) move(media.currentTime * rate());
        onState();
      });
    }
    media.addEventListener("error", () => {
      if (gone) return;
      usable = false;
      media.remove();
      onState();
    });
    holder.append(media);
  }

  const play = () => {
    if (usable) {
      if (frame >= video.frames - 1) media.currentTime = 0;
      media.play().catch(() => {}); // the error event has said why
      return;
    }
    if (frame >= video.frames) move(0);
    running = { at: performance.now(), frame };
    onState();
    requestAnimationFrame(beat);
  };
  const pause = () => {
    if (usable) media.pause();
    running = null;
    onState();
  };

  return {
    seek(wanted) {
      const target = Math.min(Math.max(wanted, 0), video.frames);
      if (usable) {
        expected = target / rate();
        media.currentTime = expected;
      }
      if (running) running = { at: performance.now(), frame: target };
      move(target);
    },
    toggle: () => (playing() ? pause() : play()),
    playing,
    frame: () => frame,
    rate,
    failed: () => media !== null && !usable,
    // Seconds by which the file is longer (or shorter, negative) than what was scored; null where they are not known.
    surplus: () =>
      metadata && video.fps && Number.isFinite(media.duration) ? media.duration - video.frames / video.fps : null,
    close() {
      gone = true;
      running = null;
      if (!media) return;
      media.pause();
      media.removeAttribute("src");
      media.load();
      media.remove();
    },
  };
}
