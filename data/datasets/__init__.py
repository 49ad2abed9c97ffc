"""Datasets: official lists and annotations, or folders of videos -> manifest. One file each."""

from data.datasets.base import DatasetIndex, datasets

__all__ = ["DatasetIndex", "datasets"]
