"""Heads: from features to scores, one file each. `heads` is the registry."""

from mil.heads.base import Head, HeadOutput, heads

__all__ = ["Head", "HeadOutput", "heads"]
