SMALL = {"width": 16, "heads": 2, "feedforward": 16, "layers": 2}
VARIANTS = [{"positions": "none", "topk": 2}]
# half the steps and segments, for their number is what costs here
LEARNS = {"data": {"count": 16}, "train": {"steps": 50, "optimizer": {"name": "adam", "lr": 6e-3}}}
