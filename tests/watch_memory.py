"""`wsvad watch` on a named pipe for a hundred thousand frames: its memory must not grow.

    python -m tests.watch_memory RUN FOLDER [--frames 100000]

RUN is one that scores pictures alone. Small pictures that move go into the pipe as fast as they are taken, as H.264 in
an MPEG transport stream. Prints the frames that were scored and the memory of the process (RSS) at every tenth, as JSON
lines, then how much the second half of the frames took beyond the highest of the first; fails above 10 MB, and where a
frame is missing.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import av
import numpy as np

from tests.helpers import numbered_frames

_MOST_MB = 10.0


def write(path: Path, count: int) -> None:
    """That many frames, 64x48, into the pipe."""
    pictures = [av.VideoFrame.from_ndarray(np.ascontiguousarray(f), "rgb24") for f in numbered_frames(500)]
    pictures = [p.reformat(format="yuv420p") for p in pictures]
    with av.open(str(path), "w", format="mpegts") as out:
        track = out.add_stream("libx264", 25, width=64, height=48, pix_fmt="yuv420p")
        track.codec_context.options = {"preset": "ultrafast", "threads": "1"}
        for i in range(count):
            picture = pictures[i % len(pictures)]
            picture.pts = i
            out.mux(track.encode(picture))
        out.mux(track.encode(None))


def memory_mb(pid: int) -> float:
    """The resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def watch_memory(run: Path, folder: Path, frames: int) -> dict[str, float]:
    """Runs it; returns the last figures."""
    folder.mkdir(parents=True, exist_ok=True)
    pipe = folder / "pipe"
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe)
    command = [sys.executable, "-m", "mil", "watch", str(run), str(pipe), "--once", "--threshold", "0.5"]
    found, end = [], {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        threading.Thread(target=write, args=(pipe, frames), daemon=True).start()
        for line in process.stdout or ():
            message = json.loads(line)
            if message["type"] == "clip" and message["stop"] * 10 >= (len(found) + 1) * frames:
                found.append(memory_mb(process.pid))
                print(json.dumps({"frames": message["stop"], "rss_mb": round(found[-1], 1)}), flush=True)
            end = message
    pipe.unlink()
    assert process.returncode == 0, process.returncode
    assert end["frames"] == frames, end
    half = len(found) // 2
    growth = max(found[half:]) - max(found[:half])
    assert growth < _MOST_MB, f"memory grew by {growth:.1f} MB"
    return {"frames": frames, "clips": end["clips"], "growth_mb": round(growth, 1), "compute_s": end["compute_s"]}


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--frames", type=int, default=100_000)
    given = parser.parse_args()
    print(json.dumps(watch_memory(given.run, given.folder, given.frames)))


if __name__ == "__main__":
    main()
