SMALL = {"hidden": 16, "layers": 1, "heads": 2, "attention": 16, "ffn": 16, "slots": [20, 17], "classifier": 8}
VARIANTS = [{"as_published": True}]
LEARNS = {"data": {"count": 12}, "train": {"steps": 40, "optimizer": {"name": "adam", "lr": 5e-3}}}
