"""The one registry of wsvad: heads, backbones and datasets are found by name, and adding one is one file."""

import hashlib
import importlib
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from importlib.metadata import entry_points
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")


class UnknownNameError(LookupError):
    """No such name. A LookupError and not a KeyError, which would print its message in quotes."""


class Registry(Generic[T]):
    """Names to things of one kind, filled by decorators.

    The modules of `package` are imported on the first look-up, never at import time, then those of the
    entry-point group `wsvad.<kind>s`, so that `wsvad --help` stays fast and third parties add theirs by installing.

    Args:
        kind: what is registered, in the singular ("head"); used in messages and in the entry-point group.
        package: dotted name of the package whose modules register themselves.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._items: dict[str, T] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: `@heads.register("rtfm")`. Raises ValueError when the name is taken by something else."""

        def add(item: T) -> T:
            old = self._items.get(name)
            if old is not None and _origin(old) != _origin(item):
                raise ValueError(
                    f"two {self.kind}s are called '{name}': {_origin(old)} and {_origin(item)}; rename one"
                )
            self._items[name] = item
            return item

        return add

    def get(self, name: str) -> T:
        """The thing of that name. Raises UnknownNameError with the nearest names."""
        self._load()
        if name in self._items:
            return self._items[name]
        own = " (one of your own: --plugin FILE.py)" if self.kind in ("head", "backbone", "dataset") else ""
        raise UnknownNameError(f"no {self.kind} called '{name}'.{suggest(name, self.names())}{own}")

    def names(self) -> list[str]:
        """All names, sorted."""
        self._load()
        return sorted(self._items)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True  # first: a module that looks something up while it loads must not recurse
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        for point in entry_points(group=f"wsvad.{self.kind}s"):
            point.load()


def suggest(name: str, known: list[str]) -> str:
    """' Did you mean ...? Known: ...', for the end of a message about an unknown name."""
    near = get_close_matches(name, known, n=3)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    return f"{hint} Known: {', '.join(known) or 'none'}"


def load_plugin(path: Path) -> None:
    """Imports a user's file (`--plugin my_head.py`), whose decorators then register what it defines.

    Raises:
        FileNotFoundError: there is no such file.
    """
    path = path.resolve()
    if not path.is_file():
        raise FileNotFoundError(f"no plugin file {path}; --plugin takes the path of a .py file")
    # by its whole path: two plugins of one file name, in two folders, are two
    name = f"wsvad_plugin_{path.stem}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"{path} is not a Python file; --plugin takes the path of a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]  # or the next call would take half a module for the whole
        raise


def _origin(item: object) -> str:
    return f"{getattr(item, '__module__', '?')}.{getattr(item, '__qualname__', item)}"
