"""A reader around another one: it gives other frames and says the same about the file."""

from collections.abc import Iterator
from types import TracebackType
from typing import Any, TypeVar

from numpy.typing import NDArray

from extract.decode import Reader

Self = TypeVar("Self", bound="WrappedReader")


class WrappedReader:
    """The protocol of `Reader`, with another one's words: num_frames, fps, num_bytes, notes, lost and times are its.

    A subclass says which frames there are. Closing it closes the inner reader.
    """

    def __init__(self, reader: "Reader | WrappedReader") -> None:
        self.reader = reader

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "reader":
            raise AttributeError(name)
        return getattr(self.reader, name)

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[NDArray[Any]]:
        raise NotImplementedError

    def close(self) -> None:
        """Closes the inner reader."""
        self.reader.close()
