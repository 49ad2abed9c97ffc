"""Extraction on a Ray cluster of two nodes on this machine: in the middle one is killed, and an actor on the other.

    python -m tests.cluster_runs MANIFEST --out DIR --backbone NAME [--option KEY=VALUE]... [--plugin FILE]...

Prints what happened as JSON. Exit code 1 unless the store is whole and equal, byte by byte, to that of an undisturbed
run without Ray. `test_extract_cluster.py` runs it in a process of its own; by hand it shows the same with a real
backbone: --backbone i3d_rocng --option weights=random --option crops=5
"""

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from data import manifest
from data.store import FeatureStore
from extract.runner import extract_all
from tests.helpers import contents

# a lost node is noticed after 3 s instead of 15; a busy machine may keep one that lives from answering half as long
WATCHFUL = {"health_check_period_ms": 500, "health_check_failure_threshold": 6, "health_check_initial_delay_ms": 0}
NODE = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 << 20}


def at_work(node: Any) -> list[int]:
    """The actors of a node that have a video in hand, by process id."""
    (raylet,) = (p.process.pid for p in node.all_processes["raylet"])
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            title = (folder / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == raylet and title.startswith(b"ray::WsvadExtractor.step"):
            found.append(int(folder.name))
    return found


class Killer(threading.Thread):
    """Kills an actor of the first node and the whole second node, each with videos in hand and a store partly filled;
    then there is a file `killed` beside the store, for backbones that wait for it."""

    def __init__(self, cluster: Any, second: Any, root: Path, total: int) -> None:
        super().__init__(daemon=True)
        self.cluster, self.second, self.root, self.total = cluster, second, root, total
        self.actors = self.nodes = 0
        self.done_before: list[int] = []
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.05) and not self.nodes:
            done = len(list(self.root.glob("videos/*/*.h5")))
            if not self.actors and done >= self.total // 6:
                for pid in at_work(self.cluster.head_node)[:1]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        self.actors += 1
                        self.done_before.append(done)
            elif done >= self.total // 4 and at_work(self.second):
                self.cluster.remove_node(self.second, allow_graceful=False)
                self.nodes += 1
                self.done_before.append(done)
                (self.root.parent / "killed").touch()


def main() -> int:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--option", action="append", default=[])
    parser.add_argument("--plugin", action="append", default=[], type=Path)
    parser.add_argument("--fatal", action="append", default=[], help="id of a video that kills whoever extracts it")
    given = parser.parse_args()
    options = dict(text.split("=", 1) for text in given.option)
    videos = manifest.read(given.manifest)
    good = [v for v in videos if v.id not in given.fatal]
    began = time.monotonic()
    extract_all(good, given.out / "whole", given.backbone, options, workers=1, plugins=given.plugin)
    wanted, alone_s = contents(given.out / "whole"), time.monotonic() - began

    from ray.cluster_utils import Cluster

    root = given.out / "cluster"
    cluster = Cluster(
        initialize_head=True, head_node_args={**NODE, "include_dashboard": False, "_system_config": WATCHFUL}
    )
    killer = Killer(cluster, cluster.add_node(**NODE), root, len(good))
    killer.start()
    began = time.monotonic()
    try:
        report = extract_all(
            videos, root, given.backbone, options, plugins=given.plugin, engine="ray", address=cluster.address
        )
    finally:
        killer.over.set()
        killer.join()
        cluster.shutdown()
    checked = FeatureStore(root).verify()
    said = {
        "videos": len(videos), "written": report.written, "present": report.present, "elsewhere": report.elsewhere,
        "failures": report.failures, "actors_killed": killer.actors, "nodes_killed": killer.nodes,
        "done_before_kills": killer.done_before, "bad_files": checked.bad, "good_files": len(checked.good),
        "bytes_equal": contents(root) == wanted, "alone_s": round(alone_s, 1),
        "cluster_s": round(time.monotonic() - began, 1),
    }  # fmt: skip
    print(json.dumps(said))
    whole = said["bytes_equal"] and not checked.bad and sorted(report.failures) == sorted(given.fatal)
    return int(not (whole and killer.actors and killer.nodes))


if __name__ == "__main__":
    sys.exit(main())
