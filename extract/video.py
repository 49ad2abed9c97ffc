"""One video to its features, without a store: for tests, and for scoring a video that nobody keeps."""

from pathlib import Path

from data.spool import FeatureSpool
from data.types import Video, VideoFeatures
from extract.backbones import Backbone
from extract.engine import described
from extract.sources import Clip, End, ThreadSource
from extract.streams import Reading


def extract_video(
    video: Video, backbone: Backbone, *, batch: int = 8, reading: Reading | None = None, folder: Path | None = None
) -> tuple[VideoFeatures, tuple[str, ...]]:
    """Features of one video, and notes on what is unusual about its file.

    Decoding runs in a thread beside the forward pass. Raises DecodeError on a file that cannot be read whole,
    ValueError on a length the manifest denies.
    """
    spec = backbone.spec
    spool = FeatureSpool(spec.crops, spec.dim, spec.dtype, folder)
    todo = iter([(0, video)])
    source = ThreadSource(lambda: next(todo, None), spec, reading or Reading(), ahead=2 * batch)
    waiting: list[Clip] = []
    end = End(0)
    try:
        while (piece := source.get(wait=True)) is not None:
            if isinstance(piece, Clip):
                waiting.append(piece)
            else:
                end = piece
            if waiting and (len(waiting) == batch or piece is end):
                spool.append(backbone.submit([c.data for c in waiting], [c.fps for c in waiting])())
                waiting = []
        if end.error is not None or end.facts is None:
            raise end.error or RuntimeError("the video ended without its length")
        features, notes = described(video, spec, spool, end.facts)
        return features.load(), (*notes, *backbone.take_notes())
    finally:
        source.close()
        spool.close()
