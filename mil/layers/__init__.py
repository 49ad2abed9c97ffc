"""Blocks that two or more heads share. Sequences are (N, T, D): N videos or crops, T segments, D features."""
