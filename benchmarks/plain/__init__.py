"""What the papers' code does, written plainly from the facts: the other side of the benchmarks beside this folder."""
