SMALL = {}
VARIANTS = [{"as_published": True}]
