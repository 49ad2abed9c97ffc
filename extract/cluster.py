"""Extraction on a Ray cluster: actors wherever there is a GPU or a core, all writing into one store.

The nodes see the store, the videos and the weights under the same paths, and have the same wsvad installed or see the
same folder of it. Actors and whole nodes may die: their videos are done again elsewhere (`extract.worklist`).
"""

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.files import temporary_name
from data.store import FeatureStore
from data.types import Video
from extract.cluster_node import actor_class, versions
from extract.cluster_offer import ClusterError, WithoutRay, connected, import_ray, offered, shared, short
from extract.engine import Messages, Outcome
from extract.workers import Job
from extract.worklist import Hands, WorkList

log = logging.getLogger(__name__)
_PATIENCE_S = 300.0  # until the first actor runs, and without any: clusters that grow take minutes
_LEASE_S = 120.0  # a shared disk may keep the claims of a node that died for a while; NFS 90 s
_PAUSE_S = 2.0
_STILLBORN = 3  # actors in a row that die before they are ready


def run_ray(
    todo: Sequence[Video],
    job: Job,
    *,
    address: str | None = None,
    actors: int = 0,
    decoders: int | None = None,
    patience_s: float = _PATIENCE_S,
) -> Messages:
    """As `run_workers`, with an actor for each GPU, or each core of a cluster without GPUs.

    Args:
        todo: what is missing in the store.
        job: what every actor does; where it runs is chosen here.
        address: of a running cluster, "auto" for the one on this machine. None takes RAY_ADDRESS, or starts Ray on
            this machine and stops it at the end.
        actors: how many; 0 for as many as the cluster has room for.
        decoders: processes that decode for each; by default as many as there are cores to spare beside a GPU.
        patience_s: how long to wait while no actor can be placed.

    Raises ClusterError without ray, without a cluster, and when no actor can start.
    """
    if not todo:
        return
    ray = import_ray()
    root = Path(job.root).resolve()
    job = replace(job, root=str(root), plugins=tuple(os.path.abspath(p) for p in job.plugins))
    videos = [replace(v, path=os.path.abspath(v.path)) if v.path else v for v in todo]
    mark = temporary_name(root / "ray")
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(WithoutRay(sys.stdout)))
        stack.enter_context(connected(ray, address))
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        job, share = shared(job, nodes, decoders)
        count = min(actors or share.fitting(nodes), len(todo))
        log.info("%d actors with %s each", count, share.describe())
        stack.callback(mark.unlink, missing_ok=True)
        mark.touch()  # an actor that does not see it writes into another folder of that name
        start = (job, versions(), str(mark), os.getcwd())
        pool = _Pool(ray, actor_class(ray).options(**share.options()), start, videos, patience_s)
        stack.callback(pool.stop)
        yield from pool.run(count)


class _Actor:
    """One actor, as seen from here; one call of it is under way at a time: `start`, then `step` after `step`."""

    def __init__(self, handle: Any, room: int) -> None:
        self.handle = handle
        self.hands = Hands(room)
        self.ready = False


class _Pool:
    def __init__(
        self,
        ray: Any,
        actor_class: Any,
        start: tuple[Job, dict[str, str], str, str],
        todo: list[Video],
        patience_s: float,
    ) -> None:
        self._ray = ray
        self._new: Callable[[], Any] = lambda: actor_class.remote(str(Path(__file__).parent.parent))
        self._given = start
        self._list = WorkList(todo)
        self._store = FeatureStore(start[0].root)
        self._actors: set[_Actor] = set()
        self._calls: dict[Any, _Actor] = {}
        self._died: dict[str, float] = {}  # when the actor died that had a video in hand
        self._later: list[tuple[float, Video]] = []
        self._patience_s = patience_s
        self._stillborn = 0
        self._refused = ""

    def run(self, count: int) -> Messages:
        for _ in range(count):
            self._start()
        served = time.monotonic()  # when an actor was last known to be there
        while self._list or self._later or any(actor.hands.videos for actor in self._actors):
            self._give()
            if not self._actors:
                if self._refused:
                    raise ClusterError(f"no actor can start; {self._refused}")
                self._start()
            if self._calls:
                for call in self._ray.wait(list(self._calls), timeout=_PAUSE_S)[0]:
                    yield from self._heard(self._calls.pop(call), call)
            else:
                time.sleep(_PAUSE_S)
            if any(actor.ready for actor in self._actors):
                served = time.monotonic()
            elif self._actors and time.monotonic() - served > self._patience_s:
                raise ClusterError(
                    f"no actor could be placed in {self._patience_s:.0f} s; the cluster offers "
                    f"{offered([self._ray.cluster_resources()])}, free are {offered([self._ray.available_resources()])}"
                )

    def stop(self) -> None:
        for actor in list(self._actors):
            self._kill(actor)

    def _start(self) -> None:
        actor = _Actor(self._new(), room=2 + self._given[0].decoders)
        self._actors.add(actor)
        self._calls[actor.handle.start.remote(*self._given)] = actor

    def _give(self) -> None:
        """Work for every actor that waits for some; one that gets none goes, since others may want its GPU."""
        now = time.monotonic()
        self._list.suspect([video for due, video in self._later if due <= now])
        self._later = [(due, video) for due, video in self._later if due > now]
        for actor in self._actors.difference(self._calls.values()):
            given = self._list.take(actor.hands)
            if actor.hands.videos:
                self._calls[actor.handle.step.remote(given)] = actor
            elif not self._later:
                self._kill(actor)

    def _kill(self, actor: _Actor) -> None:
        self._actors.discard(actor)
        with contextlib.suppress(self._ray.exceptions.RayError):  # it has gone already
            self._ray.kill(actor.handle)

    def _heard(self, actor: _Actor, call: Any) -> Messages:
        try:
            messages = self._ray.get(call) or []
        except self._ray.exceptions.RayError as error:
            self._kill(actor)  # it may only be out of reach
            yield from self._buried(actor, error)
            return
        if not actor.ready:
            actor.ready, self._stillborn, self._refused = True, 0, ""
        for message in messages:
            if isinstance(message, Outcome):
                video = actor.hands.videos.pop(message.video_id)
                if message.elsewhere and self._still_claimed(video):
                    self._later.append((time.monotonic() + _PAUSE_S, video))
                    continue
            yield message

    def _still_claimed(self, video: Video) -> bool:
        """Whether it may be a dead actor that has the video."""
        died = self._died.get(video.id)
        return died is not None and video.id not in self._store and time.monotonic() - died < _LEASE_S

    def _buried(self, actor: _Actor, error: Exception) -> Iterator[Outcome]:
        reason = _reason(error)
        if not actor.ready:
            self._refused = reason
            self._stillborn += 1
            log.warning("an actor could not start: %s", reason)
            # an error of its own would come again; a death need not
            again = not isinstance(error, self._ray.exceptions.RayTaskError) and self._stillborn < _STILLBORN
        else:
            again = True
            self._died |= dict.fromkeys(actor.hands.videos, time.monotonic())
            count, alone = len(actor.hands.videos), actor.hands.alone
            for video in self._list.bury(actor.hands):
                yield Outcome(video.id, error=f"{video.path}: its actor died ({reason}); out of memory?")
            if not alone:
                log.warning("an actor died (%s): its %d videos are done again", reason, count)
        if again and self._list:
            self._start()


def _reason(error: Exception) -> str:
    """An error's own words, without Ray's account of where it passed through."""
    cause = getattr(error, "cause", None)
    lines = [line for line in str(cause or error).splitlines() if line.strip()] or [type(error).__name__]
    return str(cause) if isinstance(cause, ClusterError) else short(lines[-1])
