"""What videos, labels and features are. Imports nothing of ours, and no torch."""

from data.grid import ClipGrid
from data.types import Event, FeatureSpec, FrameScores, SpecMismatchError, Video, VideoFeatures

__all__ = ["ClipGrid", "Event", "FeatureSpec", "FrameScores", "SpecMismatchError", "Video", "VideoFeatures"]
