SMALL = {"hidden": [32, 8], "width": 32, "detectors": 2, "dropout": [0.2, 0.4], "sub_bags": 8, "clips": 3, "topk": 3}
VARIANTS = [{"as_published": True}]
LEARNS = {"train": {"steps": 120}}  # half of them the encoder's
