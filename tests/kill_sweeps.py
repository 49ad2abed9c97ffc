"""Sweeps killed again and again, then repeated to the end: tables and checkpoints must be those of an undisturbed one.

    python -m tests.kill_sweeps FOLDER SEED [--kills 10] [--real]

Three recipes, one of them with all rules of selection, two seeds each. The whole process group is killed, workers too:
first when a run has a state to go on from, then at random moments; one time in three a worker alone is killed first.
Prints counts as JSON, or fails. The sweeps are forked from here, where torch is loaded already; with --real each is a
command line of its own.
"""

import argparse
import contextlib
import json
import logging
import multiprocessing
import os
import random
import signal
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

import torch
import torch._dynamo  # before it forks: optimizers import it late, and it takes seconds

import mil.optimistic
import mil.run  # noqa: F401
from mil import sweep_local
from mil.cli import main as wsvad
from mil.compare import compare
from mil.compare_rules import compare_rules
from mil.compare_table import render
from mil.heads import heads
from tests.mil_helpers import make_world

QUICK = "data: {count: 6, modalities: []}\n"
TRAIN = "train: {steps: 24, epochs: null, sampler: balanced, pairs: 4, save_every: 4, log_every: 5"
RECIPES = {
    "plain": f"base: motion_ranking\nhead: {{hidden: [8, 4]}}\n{QUICK}{TRAIN}}}\n",
    "ruled": f"base: motion_ranking\nhead: {{hidden: [8, 4]}}\n{QUICK}{TRAIN}, ema: 0.9}}\n"
    "select: {rule: val, also: [last, test], every: 7}\n",
    "other": f"base: motion_attention\n{QUICK}{TRAIN}}}\n",
}


class Forks:
    """Processes that are forked, and hold none of the pipes' ends but their own, as those of the server."""

    def __init__(self) -> None:
        self.context, self.ours = multiprocessing.get_context("fork"), []

    def Pipe(self):  # noqa: N802
        pipe = self.context.Pipe()
        self.ours.append(pipe[0])
        return pipe

    def Process(self, *, target, args, name):  # noqa: N802
        def run(*given):
            for one in self.ours:
                one.close()
            target(*given)

        return self.context.Process(target=run, args=args, name=name)


def forked(command: list[str], said: Path, how: str = "fork", errors: Path | None = None) -> int:
    """`wsvad` in a process group of its own, from a fork of this process, all it says going to the file `said`.

    `errors`: a file for what goes to stderr.
    `how`: its processes are forked from it ("fork"), come from a server ("server"), or it is begun anew ("real").
    """
    pid = os.fork()
    if pid:
        return pid
    status = 9
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it is ignored
        for number, path in ((1, said), (2, errors or said)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, closefd=False) for n in (1, 2))
        logging.getLogger().handlers.clear()  # pytest's
        if how == "real":
            os.execv(sys.executable, [sys.executable, "-m", "mil", *command])  # noqa: S606
        torch.set_num_threads(1)  # threads of this process's pool are not in its fork, which would wait for them
        if how == "fork":
            sweep_local._context = Forks
        else:  # the server that this process may have is not its child's
            vars(forkserver._forkserver).update(_forkserver_pid=None, _forkserver_address=None)
        try:
            wsvad(command, prog_name="wsvad")
        except SystemExit as ended:
            status = ended.code
    finally:
        os._exit(status)


def start(base: Path, out: Path, *, real: bool) -> int:
    """A sweep; its exit status is 0 when every run is done."""
    recipes = [str(base / f"{name}.yaml") for name in RECIPES]
    stores = ["--manifest", str(base / "videos.csv"), "--features", str(base / "store_rgb")]
    command = ["sweep", *recipes, *stores, "--out", str(out), "--seeds", "2", "--workers", "2"]
    return forked(command, base / "said.txt", "real" if real else "fork")


def finish(base: Path, out: Path, *, real: bool) -> None:
    _, status = os.waitpid(start(base, out, real=real), 0)
    assert status == 0, (base / "said.txt").read_text()[-3000:]


def workers_of(leader: int, *, real: bool) -> list[int]:
    """Processes that have a run, by id: children of the sweep, or of the server that it forks them from."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    return [pid for pid, parent in parents.items() if (parents.get(parent) if real else parent) == leader]


def results(out: Path) -> dict[str, bytes]:
    """The tables, and the bytes of everything that was made but times and logs."""
    found = {
        "table": render(compare([out], resamples=50), "json").encode(),
        "rules": render(compare_rules([out], resamples=50), "json").encode(),
    }
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        kept = path.parent.name in ("checkpoints", "eval") or path.name in ("config.yaml", "metrics.jsonl")
        if kept and not path.name.startswith("."):  # half a file of a process that was killed
            found[str(path.relative_to(out))] = path.read_bytes().replace(bytes(out), b"OUT")
    return found


def half_done(out: Path) -> int:
    """Runs that have a state to go on from, and are not done."""
    states = [p.parent / "status.json" for p in out.glob("*/resume.pt")]
    return sum(not p.is_file() or json.loads(p.read_text())["state"] != "done" for p in states)


def wait_for_a_state(pid: int, out: Path) -> None:
    """Returns when a run of the sweep could be gone on with, or when the sweep has ended."""
    while not half_done(out) and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.002)


def kill_sweeps(base: Path, seed: int, kills: int = 10, *, real: bool = False) -> dict[str, int]:
    """Kills that many sweeps; returns what happened."""
    base, rng = base.resolve(), random.Random(seed)
    heads.names()
    make_world(base, train=6, test=3)
    for name, text in RECIPES.items():
        (base / f"{name}.yaml").write_text(text)
    began = time.monotonic()
    finish(base, base / "whole", real=real)
    duration = time.monotonic() - began
    wanted = results(base / "whole")
    counts = {"kills": 0, "workers_killed": 0, "sweeps": 0, "half_done_at_kills": 0, "done_before_kills": 0}
    while counts["kills"] < kills:
        out = base / f"killed{counts['sweeps']}"
        counts["sweeps"] += 1
        while counts["kills"] < kills:
            pid = start(base, out, real=real)
            if not counts["half_done_at_kills"]:
                wait_for_a_state(pid, out)
            else:
                time.sleep(rng.uniform(0.1, 0.6) * duration)
            if counts["half_done_at_kills"] and rng.random() < 1 / 3 and (busy := workers_of(pid, real=real)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rng.choice(busy), signal.SIGKILL)
                    counts["workers_killed"] += 1
                time.sleep(rng.uniform(0, 0.2) * duration)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            if not os.WIFSIGNALED(status):  # too late: it had ended
                counts["done_before_kills"] += 1
                break
            counts["kills"] += 1
            counts["half_done_at_kills"] += half_done(out)
        finish(base, out, real=real)
        found = results(out)
        assert found.keys() == wanted.keys(), found.keys() ^ wanted.keys()
        assert [name for name in wanted if found[name] != wanted[name]] == []
    assert counts["half_done_at_kills"] > 0, "no kill met a run that had a state to go on from"
    return {**counts, "files_compared": len(wanted), "bytes": sum(map(len, wanted.values()))}


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("seed", type=int)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--real", action="store_true")
    given = parser.parse_args()
    print(json.dumps(kill_sweeps(given.folder, given.seed, given.kills, real=given.real)))


if __name__ == "__main__":
    main()
