SMALL = {"hidden": [16, 12, 8], "classifier": 32, "dropout": 0.2}
VARIANTS = [{"as_published": True}, {"rounds": 1}]
LEARNS = {"train": {"steps": 60, "optimizer": {"name": "adam", "lr": 6e-3}}}  # five stages of 12 steps
