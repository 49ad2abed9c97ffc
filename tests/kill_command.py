"""The real command on any manifest, its whole process group ended by SIGKILL again and again.

    python -m tests.kill_command MANIFEST --out DIR [--kills 20] --backbone i3d_rocng --weights random --crops 5

What is not known here is passed to `wsvad extract`. Extracts an undisturbed store first, then another one with kills at
random moments spread over the work, start-up included, checks it after each, and completes it. Prints a summary as
JSON; exit code 1 when anything differs from the undisturbed store, or a kill left something behind.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py

from data.store import FeatureStore
from tests.helpers import ROOT, contents

COMMAND = [sys.executable, "-m", "mil"]


def done(root: Path) -> int:
    return len(list(root.glob("videos/*/[!.]*.h5")))


def in_group(group: int) -> list[str]:
    """Processes of a group that still run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, theirs, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(theirs) == group and state != "Z":
            found.append(folder.name)
    return found


def faults(root: Path, wanted: dict[str, bytes]) -> list[str]:
    """What is wrong with a store after a kill: what is under a final name must be whole, and equal."""
    if not (root / "spec.json").exists():
        return [f"{name} without a spec" for name in contents(root)]
    found = list(FeatureStore(root).verify().bad)
    return found + [f"{name} differs" for name, raw in contents(root).items() if wanted.get(name) != raw]


def strays(root: Path, wanted: dict[str, bytes]) -> list[str]:
    """What is wrong with a store that was completed."""
    found = faults(root, wanted)
    found += [f"{name} is missing" for name in wanted if not (root / name).exists()]
    found += [f"{p} lies about" for p in root.rglob("*") if p.is_file() and (p.name[0] == "." or p.suffix == ".tmp")]
    with h5py.File(root / "features.h5") as links:
        if len(links["videos"]) != len(wanted):
            found.append(f"{len(links['videos'])} links to {len(wanted)} videos")
    return found


class Extraction:
    """`wsvad extract` into a folder, in a process group of its own."""

    def __init__(self, given: list[str], root: Path) -> None:
        self.root, self.began = root, time.monotonic()
        root.parent.mkdir(parents=True, exist_ok=True)
        self.log = (root.parent / f"{root.name}.log").open("ab")
        self.process = subprocess.Popen(
            [*COMMAND, "extract", *given, "--out", str(root)], cwd=Path.cwd(), start_new_session=True,
            stdout=self.log, stderr=self.log, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    def wait_for(self, count: int) -> float:
        """Seconds until there are so many videos, or it has ended."""
        while self.process.poll() is None and done(self.root) < count:
            time.sleep(0.005)
        return time.monotonic() - self.began

    def kill(self, delay_s: float) -> bool:
        """Whether the kill found it running; all that it started is gone then."""
        try:
            self.process.wait(delay_s)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.end()
        while left := in_group(self.process.pid):
            if time.monotonic() - self.began > 3600:
                raise RuntimeError(f"processes {left} outlived the kill")
        return self.process.returncode == -signal.SIGKILL

    def end(self) -> int:
        status = self.process.wait()
        self.log.close()
        return status


def main() -> int:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("manifest")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    known, rest = parser.parse_known_args()
    given, out, rng = [known.manifest, *rest], known.out.resolve(), random.Random(known.seed)
    shm = set(os.listdir("/dev/shm"))  # noqa: S108  # looked at, not written to

    whole = Extraction(given, out / "whole")
    start_s = whole.wait_for(1)
    if whole.end():
        sys.exit(f"the undisturbed run failed; see {out / 'whole.log'}")
    whole_s, wanted = time.monotonic() - whole.began, contents(out / "whole")
    pace_s = (whole_s - start_s) / len(wanted)

    moments: list[int] = []  # how many videos there were at each kill
    wrong: list[str] = []
    completed = 0
    while len(moments) < known.kills or not completed:
        root = out / f"killed{completed}"
        run = Extraction(given, root)
        # in the order of work, so that the kills are spread over it; every fourth comes while it starts
        if len(moments) >= known.kills:
            run.wait_for(len(wanted) + 1)
        elif len(moments) % 4 != 3:
            run.wait_for(round(len(wanted) * (len(moments) + rng.random()) / known.kills))
        delay_s = rng.uniform(0, start_s if len(moments) % 4 == 3 else 2 * pace_s)
        if len(moments) < known.kills and run.kill(delay_s):
            moments.append(done(root))
            wrong += [f"kill {len(moments)}: {fault}" for fault in faults(root, wanted)]
            continue
        status = run.end()
        if status:
            sys.exit(f"{root} could not be completed, exit code {status}; see {root}.log")
        wrong += strays(root, wanted)
        verified = subprocess.run([*COMMAND, "store", "verify", str(root)], cwd=ROOT, capture_output=True, check=False)
        wrong += [verified.stdout.decode()] if verified.returncode else []
        completed += 1
    left = sorted(n for n in set(os.listdir("/dev/shm")) - shm if n.startswith(("psm_", "pym-")))  # noqa: S108
    said = {
        "videos": len(wanted), "bytes": sum(map(len, wanted.values())), "kills": len(moments),
        "videos_at_kills": moments, "stores_completed": completed, "wrong": wrong, "shared_memory_left": left,
        "seed": known.seed, "undisturbed_s": round(whole_s, 1),
    }  # fmt: skip
    print(json.dumps(said))
    return int(bool(wrong or left))


if __name__ == "__main__":
    sys.exit(main())
