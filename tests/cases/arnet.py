SMALL = {"hidden": 16, "dropout": 0.3}
VARIANTS = [{"as_published": True}]
