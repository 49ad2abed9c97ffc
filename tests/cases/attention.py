SMALL = {"hidden": 16, "attention": 8}
VARIANTS = [{"gated": False}, {"pool": "features"}]
