"""One file for each head that wants one: how the contract tests make it small, vary it, and let it learn.

SMALL    options that make it quick: narrow layers
VARIANTS options on top of SMALL, each tested like the default
REACHES  {"auc": ..., "ano_auc": ...} on unseen videos, where the head by design cannot reach 0.95; a comment says why
LEARNS   recipe values on top of the contract's own for the test that it learns, e.g. {"train": {"steps": 300}}
"""
