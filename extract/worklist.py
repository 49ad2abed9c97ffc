"""Who has which video in hand, and what becomes of it when a worker dies: one rule for processes and for a cluster.

The videos of a worker that died are done again, one at a time, once the others are through: the one that takes a second
worker with it, alone in its hands, is to blame.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from data.types import Video


@dataclass(eq=False)
class Hands:
    """The videos of one worker: up to `room` of them, so that it decodes the next while the net works on the last."""

    room: int
    videos: dict[str, Video] = field(default_factory=dict)
    alone: bool = False
    """It holds one video that a worker died of before."""


class WorkList:
    """The videos that are still to be handed out."""

    def __init__(self, todo: Iterable[Video]) -> None:
        self._left = deque(todo)
        self._suspects: deque[Video] = deque()

    def __len__(self) -> int:
        return len(self._left) + len(self._suspects)

    def take(self, hands: Hands) -> list[Video]:
        """Puts what there is room for into a worker's hands, and returns what is new there. A suspect goes alone."""
        if hands.alone and hands.videos:
            return []
        hands.alone = False
        given: list[Video] = []
        while self._left and len(hands.videos) + len(given) < hands.room:
            given.append(self._left.popleft())
        if not given and not hands.videos and self._suspects:
            hands.alone = True
            given.append(self._suspects.popleft())
        hands.videos |= {video.id: video for video in given}
        return given

    def give_back(self, hands: Hands) -> None:
        """Takes everything from a worker that never began."""
        back = self._suspects if hands.alone else self._left
        back.extendleft(reversed(hands.videos.values()))
        hands.videos.clear()

    def bury(self, hands: Hands) -> list[Video]:
        """Takes everything from a worker that died; returns the video that is to blame, if that is clear."""
        videos = list(hands.videos.values())
        hands.videos.clear()
        if hands.alone:
            return videos
        self._suspects += videos
        return []

    def suspect(self, videos: Iterable[Video]) -> None:
        """Adds videos that are to be done alone, once the others are through."""
        self._suspects.extend(videos)

    def rest(self) -> list[Video]:
        """Everything that was not handed out, in the order in which it would be; the list is empty then."""
        videos = [*self._left, *self._suspects]
        self._left.clear()
        self._suspects.clear()
        return videos
