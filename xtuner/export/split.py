"""One tensor per shard, for programs that load a model piece by piece."""

import shutil
from collections.abc import Callable
from pathlib import Path

from xtuner.checkpoint.folder import WEIGHTS, fresh_folder, require_space, writing
from xtuner.checkpoint.shards import ShardReader, ShardWriter
from xtuner.export.target import refuse_folder
from xtuner.log import LOGGER


def split(src: Path, dst: Path, *, tell: Callable[[str], None] = LOGGER.info) -> None:
    """Write the model in `src` into `dst` with every tensor in a shard of its own; other files are copied.

    The kind of file (safetensors or .bin) stays. Memory: one tensor.

    Raises:
        UserError: no model in `src`, `dst` is `src`, or the disk is full.
    """
    reader = ShardReader(src)
    refuse_folder(dst, src)
    require_space(dst, reader.num_bytes())
    tell(f"Saving {len(reader.names())} shards to {dst}...")
    with fresh_folder(dst) as aside:
        with ShardWriter(aside, max_bytes=1, safe=reader.safe) as writer:
            for name in reader.names():
                writer.add(name, reader.get(name))
        with writing(dst):
            for file in sorted(src.iterdir()):
                if file.is_file() and not WEIGHTS.fullmatch(file.name):
                    shutil.copyfile(file, aside / file.name)
