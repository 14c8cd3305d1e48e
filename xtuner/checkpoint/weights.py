"""Weights by name that are read or put together only when they are asked for."""

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor


class LazyWeights(Mapping[str, Tensor]):
    """A read-only dictionary of weights; each access makes the tensor anew, so take it once."""

    def __init__(self, makers: Mapping[str, Callable[[], Tensor]]) -> None:
        self._makers = makers

    def __getitem__(self, name: str) -> Tensor:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)

    def __contains__(self, name: object) -> bool:
        return name in self._makers  # without making it
