SMALL = {}
VARIANTS = [{"as_published": True}]
# steps and segments are what costs here
LEARNS = {"data": {"count": 16}, "train": {"steps": 60, "optimizer": {"name": "adam", "lr": 5e-3}}}
