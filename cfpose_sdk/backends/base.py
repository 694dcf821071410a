"""What every runtime offers: open, run, close."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Literal, Self

from numpy.typing import NDArray

from cfpose_sdk.errors import BackendError

Device = Literal["auto", "cpu", "cuda"]
Feeds = Mapping[str, NDArray[Any]]


class Backend(ABC):
    """One opened model. `with open_backend(path) as model: model.run({"crops": crops})`.

    Threads may share it. The arrays that `run` returns belong to the caller.
    """

    path: Path
    provider: str  # what truly runs it, as the runtime names it
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    metadata: Mapping[str, str]
    # of each input, where the runtime tells; None stands for a side that is left open
    input_shapes: Mapping[str, tuple[int | None, ...]] = MappingProxyType({})
    input_types: Mapping[str, str] = MappingProxyType({})  # in onnxruntime's words

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Run the model once; `feeds` holds an array for each of `inputs`.

        Raises BackendError when a feed is missing or unknown, or when the runtime fails.
        """
        if feeds.keys() != set(self.inputs):
            raise BackendError(
                f"{self.path.name} takes inputs {sorted(self.inputs)}, got {sorted(feeds)}"
            )
        return self._run(feeds)

    @abstractmethod
    def _run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Run with checked feed names."""

    @abstractmethod
    def close(self) -> None:
        """Free the model; a second call does nothing, a later `run` raises BackendError."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
