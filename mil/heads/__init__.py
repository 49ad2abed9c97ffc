"""Heads: from features to scores, one file each. `heads` is the registry."""

from mil.heads.base import Head, HeadOutput, Progress, Scan, heads

__all__ = ["Head", "HeadOutput", "Progress", "Scan", "heads"]
