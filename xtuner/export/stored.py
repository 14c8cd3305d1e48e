"""Which tensors of the files a weight in memory is made of, and how: by the library's own conversions.

transformers keeps the experts of a layer as one weight, and gives some weights other names than their files.
"""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, dot_natural_key

from xtuner.checkpoint.shards import ShardReader

Read = Callable[[str], Tensor]


class StoredWeights:
    """The weights of `model` by their names in memory, read from the files of `reader` when asked for."""

    def __init__(self, model: PreTrainedModel, reader: ShardReader) -> None:
        self._model = model
        self._renamed: dict[str, str] = {}
        self._converted: dict[str, tuple[WeightConverter, list[tuple[str, str]]]] = {}
        transforms: list[Any] = get_model_conversion_mapping(model)
        renamings = [one for one in transforms if not isinstance(one, WeightConverter)]
        converters = [one for one in transforms if isinstance(one, WeightConverter)]
        for stored in sorted(reader.names(), key=dot_natural_key):
            name = stored
            for renaming in renamings:
                name, _ = renaming.rename_source_key(name)
            for converter in converters:
                name, pattern = converter.rename_source_key(name)
                if pattern is not None:
                    self._converted.setdefault(name, (converter, []))[1].append((stored, pattern))
                    break
            else:
                self._renamed[name] = stored

    def __contains__(self, name: str) -> bool:
        return name in self._renamed or name in self._converted

    def get(self, name: str, read: Read) -> Tensor:
        """Return the weight that memory calls `name`; `read` gives the tensors of the files.

        Memory: the tensors that it is made of, and itself.
        """
        if name in self._renamed:
            return read(self._renamed[name])
        converter, sources = self._converted[name]
        converter = deepcopy(converter)
        for stored, pattern in sources:
            converter.add_tensor(name, stored, pattern, partial(read, stored))  # type: ignore[arg-type]
        found = converter.convert(name, model=self._model, config=self._model.config)[name]
        return found[0] if isinstance(found, list) else found
