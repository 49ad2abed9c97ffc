"""Backbones: complete extraction presets, one file each. `backbones` is the registry, `create` makes one."""

from extract.backbones.base import Backbone, BackboneError, backbones, create, option_names, plan

__all__ = ["Backbone", "BackboneError", "backbones", "create", "option_names", "plan"]
