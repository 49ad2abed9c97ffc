"""Extraction on a cluster: nodes and actors that die cost no video, and the bytes are those of a run without Ray."""

import importlib.util
import json
import random
import subprocess
import sys
import threading
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pytest

from data import manifest
from data.datasets.toy_video import write_video
from data.store import FeatureStore
from data.types import Video
from extract import cluster, cluster_offer
from extract.backbones import backbones
from extract.cluster_node import Extraction, versions
from extract.cluster_offer import ClusterError, Share, WithoutRay, shared
from extract.engine import Outcome, Progress
from extract.runner import extract_all
from extract.workers import Job
from tests.helpers import ROOT, spec_of, write_small

SLOW = '''
import os, signal, sys, time
from pathlib import Path
import numpy as np
from data.types import FeatureSpec
from extract.backbones import Backbone, backbones

if "ray" in sys.modules:
    backbones._loaded = True  # no need of the other backbones in an actor: starts sooner

@backbones.register("slow")
class Slow(Backbone):
    """Brightness of a clip, slowly until the kills have landed; a black one kills the process."""

    uses_torch = False

    def __init__(self) -> None:
        self.spec = FeatureSpec(backbone="slow", dim=2, weights="none", resize="8x8:area", color="gray")

    def extract(self, clips, fps):
        if clips.mean() < 3:
            os.kill(os.getpid(), signal.SIGKILL)
        if "ray" in sys.modules and not (Path(__file__).parent / "out" / "killed").exists():
            time.sleep(0.3)
        return np.stack([clips.mean((1, 2, 3)), clips.std((1, 2, 3))], 1)[:, None].astype(np.float32)
'''


@pytest.fixture
def slow(tmp_path):
    path = tmp_path / "slow.py"
    path.write_text(SLOW)
    yield path
    backbones._items.pop("slow", None)


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install 'wsvad[ray]'")
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the actors in /proc")
def test_a_node_and_an_actor_killed_in_the_middle(tmp_path, slow):
    """And a video that kills its actor. In a process of its own, since Ray leaves threads and sockets behind."""
    paths = [write_small(tmp_path / f"v{i}.mp4", 20 + 5 * i, seed=i) for i in range(18)]
    write_video(tmp_path / "black.mp4", [np.zeros((32, 32, 3), np.uint8)] * 20)
    videos = [Video(p.stem, str(p), "train", 0) for p in [*paths, tmp_path / "black.mp4"]]
    manifest.write(tmp_path / "m.csv", videos)
    given = ("--backbone", "slow", "--plugin", slow, "--fatal", "black", "--out", tmp_path / "out")
    done = subprocess.run(
        [sys.executable, "-m", "tests.cluster_runs", tmp_path / "m.csv", *given],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    said = json.loads(done.stdout)  # nothing else there: Ray is kept quiet
    assert (said["actors_killed"], said["nodes_killed"]) == (1, 1)
    assert all(0 < done < 18 for done in said["done_before_kills"]), "the kills missed the middle of the run"
    assert list(said["failures"]) == ["black"]
    assert "black.mp4: its actor died (" in said["failures"]["black"]
    assert (said["bad_files"], said["good_files"], said["bytes_equal"]) == ([], 18, True)
    assert len(said["written"]) + len(said["present"]) == 18
    assert said["elsewhere"] == []
    assert "raylet" not in done.stderr


def test_without_ray_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    path = write_small(tmp_path / "v.mp4", 20)
    with pytest.raises(ClusterError, match=r"needs ray: pip install 'wsvad\[ray\]'"):
        extract_all([Video("v", str(path), "train", 0)], tmp_path / "s", "tiny", engine="ray")
    assert extract_all([], tmp_path / "s", "tiny", engine="ray").written == []


# -- what an actor gets ------------------------------------------------------------------------------------------------

GB = 1e9
CPU_NODE, GPU_NODE = {"CPU": 16.0, "memory": 40 * GB}, {"CPU": 24.0, "GPU": 4.0, "memory": 200 * GB}


@pytest.mark.parametrize(
    ("nodes", "decoders", "share", "fitting", "device", "processes"),
    [
        # a core each, as far as memory goes: 40 GB hold 24 workers of 1.6 GB, 8 GB hold 4
        ([CPU_NODE], None, Share(1.0, 0.0, 3 << 29), 16, "cpu", 0),
        ([CPU_NODE, {"CPU": 16.0, "memory": 8 * GB}], None, Share(1.0, 0.0, 3 << 29), 20, "cpu", 0),
        ([CPU_NODE], 3, Share(4.0, 0.0, 3 << 29), 4, "cpu", 3),
        # a GPU each with its sixth of the node's cores, five of which decode; the node without GPU holds none
        ([GPU_NODE, CPU_NODE], None, Share(6.0, 1.0), 4, "cuda", 5),
        ([GPU_NODE, {"CPU": 4.0, "GPU": 2.0}], None, Share(2.0, 1.0), 6, "cuda", 1),
        ([GPU_NODE], 2, Share(3.0, 1.0), 4, "cuda", 2),
        ([GPU_NODE], 20, Share(6.0, 1.0), 4, "cuda", 20),  # no more than there is, or it would never be placed
        ([], None, Share(1.0, 0.0, 3 << 29), 1, "cpu", 0),  # a cluster that may grow
    ],
)
def test_the_share_of_an_actor(nodes, decoders, share, fitting, device, processes):
    job, found = shared(Job("s", "tiny", {}), nodes, decoders)
    assert (found, found.fitting(nodes)) == (share, fitting)
    assert (job.options["device"], job.reading.device, job.decoders) == (device, device, processes)
    assert job.threads == (0 if found.gpus else 1)


def test_devices_that_are_asked_for():
    assert shared(Job("s", "tiny", {"device": "cpu"}), [GPU_NODE], None)[1].gpus == 0
    job, share = shared(Job("s", "tiny", {"device": "cuda:1"}), [GPU_NODE], None)
    assert (job.options["device"], share.gpus) == ("cuda", 1.0)  # an actor sees one GPU only
    with pytest.raises(ClusterError, match=r"--device cuda, but no node has a GPU: 16 CPU, 0 GPU, 4e\+10 memory"):
        shared(Job("s", "tiny", {"device": "cuda"}), [CPU_NODE], None)
    assert shared(Job("s", "motion", {}), [GPU_NODE], None)[1] == Share(1.0)  # no torch: no GPU, no memory to speak of


def test_rays_own_thread_does_not_write_to_standard_output(caplog):
    caplog.set_level("DEBUG", logger=cluster_offer.__name__)
    out = StringIO()
    with redirect_stdout(WithoutRay(out)):
        print('{"ours": 1}')
        thread = threading.Thread(target=print, args=("node marked dead",), name="ray_listen_error_messages")
        thread.start()
        thread.join()
    assert out.getvalue() == '{"ours": 1}\n'
    assert caplog.messages == ["node marked dead"]


# -- on the node -------------------------------------------------------------------------------------------------------


@pytest.fixture
def started(tmp_path, slow):
    """What `start` of an actor is given, and videos."""
    from data.registry import load_plugin
    from extract.backbones import create

    load_plugin(slow)
    FeatureStore(tmp_path / "s", create("slow").spec)
    (tmp_path / "mark").touch()
    job = Job(str(tmp_path / "s"), "slow", {}, plugins=(str(slow),))
    videos = [Video(p.stem, str(p), "train", 0) for p in (write_small(tmp_path / f"v{i}.mp4", 40) for i in range(3))]
    return [job, versions(), str(tmp_path / "mark"), str(tmp_path)], videos


def test_an_actor_extracts_and_answers_step_by_step(tmp_path, started):
    given, videos = started
    actor = Extraction()
    actor.start(*given)
    found = []
    for batch in (videos[:2], [Video("gone", str(tmp_path / "gone.mp4"), "train", 0)], videos[2:], []):
        found += actor.step(batch) if len(found) < 4 else []
    assert sorted(m.video_id for m in found) == ["gone", "v0", "v1", "v2"]
    assert ["no such file" in m.error for m in found if m.error] == [True]
    assert sorted(FeatureStore(tmp_path / "s").ids()) == ["v0", "v1", "v2"]
    actor._videos.put(None)


def test_an_error_of_the_engine_itself_reaches_the_driver(started, monkeypatch):
    given, videos = started

    def run_here(videos, job, backbone):
        next(videos)
        raise RuntimeError("a defect")

    monkeypatch.setattr("extract.cluster_node.run_here", run_here)
    actor = Extraction()
    actor.start(*given)
    with pytest.raises(RuntimeError, match="a defect"):
        actor.step(videos)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((1, {**versions(), "torch": "1.0"}), r"node .+: has torch [0-9.]+, not 1.0: numbers could differ"),
        ((2, "/nowhere/mark"), r"node .+: does not see the store .+; it must lie on a disk that all nodes share"),
    ],
)
def test_a_node_that_would_compute_something_else_is_refused(started, change, message):
    given, _ = started
    given[change[0]] = change[1]
    with pytest.raises(ClusterError, match=message):
        Extraction().start(*given)


def test_a_net_that_cannot_be_made_there_names_the_node(started):
    given, _ = started
    given[0] = Job(given[0].root, "tiny", {"weights": "file.pt"})
    with pytest.raises(ClusterError, match=r"node .+: tiny is never trained"):
        Extraction().start(*given)


# -- the driver's side, with actors that die to order ------------------------------------------------------------------


class Cluster:
    """In the place of Ray: calls are answered when they are waited for, by `behave(actor, videos in hand)`."""

    class exceptions:  # noqa: N801
        class RayError(Exception):
            pass

        class RayTaskError(RayError):
            cause: Exception

    def __init__(self, behave, *, seed=0, placed=10**9):
        self.behave, self.placed, self.rng = behave, placed, random.Random(seed)
        self.actors: list[FakeActor] = []
        self.calls: dict[int, tuple[str, FakeActor]] = {}

    def remote(self, folder):
        assert folder == str(ROOT)
        self.actors.append(FakeActor(self, len(self.actors)))
        return self.actors[-1]

    def wait(self, calls, timeout):
        ready = [c for c in calls if self.calls[c][1].number < self.placed]
        return [self.rng.choice(ready)] if ready else [], []

    def get(self, call):
        name, actor = self.calls.pop(call)
        if name == "start":
            return self.behave(actor, None)
        message = self.behave(actor, list(actor.hands))
        if isinstance(message, Outcome):
            actor.hands = [v for v in actor.hands if v.id != message.video_id]
        return [message]

    def kill(self, actor):
        actor.killed = True

    def cluster_resources(self):
        return {"CPU": 3.0, "memory": 2e9}

    def available_resources(self):
        return {"CPU": 1.0}


class FakeActor:
    def __init__(self, ray, number):
        self.ray, self.number, self.hands, self.killed = ray, number, [], False
        self.start, self.step = (Call(self, name) for name in ("start", "step"))


class Call:
    def __init__(self, actor, name):
        self.actor, self.name = actor, name

    def remote(self, *given):
        assert not self.actor.killed
        if self.name == "step":
            self.actor.hands += given[0]
        key = len(self.actor.ray.calls) + self.actor.ray.rng.randrange(1 << 60)
        self.actor.ray.calls[key] = (self.name, self.actor)
        return key


def finishes(actor, hands):
    return Outcome(hands[0].id, 1) if hands is not None else None


def outcomes_of(ray, tmp_path, *, count=20, actors=3, patience_s=60.0):
    FeatureStore(tmp_path / "s", spec_of())
    videos = [Video(f"v{i}", f"/v{i}.mp4", "train", 0) for i in range(count)]
    start = (Job(str(tmp_path / "s"), "slow", {}), {}, "", "")
    pool = cluster._Pool(ray, ray, start, videos, patience_s)
    found = list(pool.run(actors))
    assert all(actor.killed for actor in ray.actors if not actor.hands) or pool._actors
    pool.stop()
    assert all(actor.killed for actor in ray.actors)
    return found


@pytest.mark.parametrize("seed", range(30))
def test_every_video_is_reported_once_whoever_dies(tmp_path, seed):
    """Random deaths of actors with several videos in hand blame nobody; a video that kills each time is blamed."""
    rng = random.Random(seed)
    poison = {f"v{i}" for i in rng.sample(range(20), rng.randrange(4))}

    def behave(actor, hands):
        if hands is None:
            return None
        if hands[0].id in poison or (len(hands) > 1 and rng.random() < 0.3):
            raise Cluster.exceptions.RayError("the worker died\nend of file")
        return Outcome(hands[0].id, 1) if rng.random() < 0.8 else Progress(hands[0].id, 5, 80)

    found = [m for m in outcomes_of(Cluster(behave, seed=seed), tmp_path) if isinstance(m, Outcome)]
    assert sorted(m.video_id for m in found) == sorted(f"v{i}" for i in range(20))
    assert {m.video_id: m.error for m in found if m.error} == {
        name: f"/{name}.mp4: its actor died (end of file); out of memory?" for name in poison
    }


def test_a_video_claimed_by_an_actor_that_died_is_tried_until_the_claim_is_gone(tmp_path, monkeypatch):
    """A shared disk may keep the claim for a while. A video that others have is left to them at once."""
    monkeypatch.setattr(cluster, "_PAUSE_S", 0.001)
    tries = {"v0": 0, "v1": 0}

    def behave(actor, hands):
        if hands is None:
            return None
        name = hands[0].id
        if actor.number == 0:
            raise Cluster.exceptions.RayError("node gone")
        if name in ("v0", "v9"):
            tries[name] = tries.get(name, 0) + 1
            return Outcome(name, elsewhere=name == "v9" or tries[name] < 4)
        return Outcome(name, 1)

    found = outcomes_of(Cluster(behave), tmp_path, count=10, actors=1)
    assert sorted(m.video_id for m in found) == sorted(f"v{i}" for i in range(10))
    assert [m.video_id for m in found if m.elsewhere] == ["v9"]
    assert (tries["v0"], tries["v9"]) == (4, 1)


def test_a_claim_that_stays_is_not_waited_for_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "_PAUSE_S", 0.001)
    monkeypatch.setattr(cluster, "_LEASE_S", 0.05)

    def behave(actor, hands):
        if hands is None:
            return None
        if actor.number == 0:
            raise Cluster.exceptions.RayError("node gone")
        return Outcome(hands[0].id, elsewhere=hands[0].id == "v0")

    found = outcomes_of(Cluster(behave), tmp_path, count=3, actors=1)
    assert [m.video_id for m in found if m.elsewhere] == ["v0"]
    assert len(found) == 3


def test_what_a_dead_actor_wrote_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "_PAUSE_S", 3600.0)
    FeatureStore(tmp_path / "s", spec_of()).path("v0").parent.mkdir(parents=True)

    def behave(actor, hands):
        if hands is None:
            return None
        if actor.number == 0:
            FeatureStore(tmp_path / "s").path("v0").touch()
            raise Cluster.exceptions.RayError("node gone")
        return Outcome(hands[0].id, elsewhere=hands[0].id == "v0")

    found = outcomes_of(Cluster(behave), tmp_path, count=3, actors=1)
    assert [m.video_id for m in found if m.elsewhere] == ["v0"]


def test_no_room_on_the_cluster_says_what_there_is(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "_PAUSE_S", 0.001)
    message = r"no actor could be placed in 0 s; the cluster offers 3 CPU, 0 GPU, 2e\+09 memory, free are 1 CPU, 0 GPU"
    with pytest.raises(ClusterError, match=message):
        outcomes_of(Cluster(finishes, placed=0), tmp_path, patience_s=0.05)


def test_actors_that_are_never_placed_do_not_hold_up_the_others(tmp_path):
    ray = Cluster(finishes, placed=1)
    assert len(outcomes_of(ray, tmp_path, actors=5, patience_s=0.0)) == 20
    assert len(ray.actors) == 5


def test_a_node_that_refuses_is_left_out_and_when_all_do_it_ends(tmp_path):
    def refusal():
        error = Cluster.exceptions.RayTaskError("a long trace")
        error.cause = ClusterError("node n1: has torch 1, not 2")
        return error

    def behave(actor, hands):
        if hands is None and actor.number < refusing:
            raise refusal()
        return finishes(actor, hands)

    refusing = 2
    ray = Cluster(behave)
    assert len(outcomes_of(ray, tmp_path, actors=3)) == 20
    assert len(ray.actors) == 3  # none in the place of those: it would be refused as well
    refusing = 3
    with pytest.raises(ClusterError, match="no actor can start; node n1: has torch 1, not 2"):
        outcomes_of(Cluster(behave), tmp_path, actors=3)


def test_actors_that_die_while_they_start_are_replaced_three_times(tmp_path):
    def behave(actor, hands):
        if hands is None and actor.number < dying:
            raise Cluster.exceptions.RayError("killed")
        return finishes(actor, hands)

    dying = 2
    assert len(outcomes_of(Cluster(behave), tmp_path, actors=1)) == 20
    dying = 99
    ray = Cluster(behave)
    with pytest.raises(ClusterError, match="no actor can start; killed"):
        outcomes_of(ray, tmp_path, actors=1)
    assert len(ray.actors) == 3
