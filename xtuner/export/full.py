"""A fully trained model becomes a folder that others load: shards, and everything that belongs beside them."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from xtuner.checkpoint.folder import fresh_folder, require_space, writing
from xtuner.checkpoint.hub import find_folder
from xtuner.checkpoint.shards import ShardReader, ShardWriter
from xtuner.config.spec import RunSpec
from xtuner.conversation.builtin import to_template
from xtuner.conversation.detect import detect_template
from xtuner.conversation.template import ChatTemplate
from xtuner.errors import UserError
from xtuner.export.companion import Speech, read_config_json, vocabulary_key, write_companions
from xtuner.export.fold import embedding_name, head_name
from xtuner.export.target import refuse_folder
from xtuner.export.trained import narrow
from xtuner.log import LOGGER
from xtuner.model.foreign_code import announce_code
from xtuner.model.load import load_tokenizer
from xtuner.model.position import position_changes


def write_full(
    spec: RunSpec,
    state: Mapping[str, Tensor],
    save_dir: Path,
    *,
    dtype: torch.dtype | None,
    max_bytes: int,
    safe: bool,
    extra: Mapping[str, str] | None = None,
    template: ChatTemplate | None = None,
    trust_remote_code: bool = False,
    tell: Callable[[str], None] = LOGGER.info,
) -> None:
    """Write a fully trained model as shards, tensor by tensor, with everything that belongs beside them.

    `dtype` None: that of the base. What the checkpoint does not hold (buffers) comes from the base.

    Raises:
        UserError: the checkpoint does not fit the base; the disk is full.
    """
    base = find_folder(spec.model.path, weights=True)
    refuse_folder(save_dir, base)
    reader = ShardReader(base)
    unknown = sorted(name for name in state if name not in reader)
    if unknown:
        raise UserError(
            f"The checkpoint does not fit {base}: it holds {len(unknown)} weights that are not there, "
            f"such as {', '.join(unknown[:3])}.",
            "Give the config that this checkpoint was trained with.",
        )
    words = words_of(spec, base, template, trust_remote_code=trust_remote_code, tell=tell)
    changes = position_changes(spec.model, read_config_json(base))
    added: set[str] = set()
    if spec.model.resize_vocab:  # the embedding and the head may have more rows
        embedding = embedding_name(reader)
        added = {embedding, head_name(reader)}
        if embedding in state:
            changes[vocabulary_key(read_config_json(base))] = state[embedding].shape[0]
    numbers = sum(math.prod(reader.shape(name)) for name in reader.names())
    require_space(save_dir, numbers * dtype.itemsize if dtype else reader.num_bytes())
    tell(f"Saving to {save_dir} ...")
    with fresh_folder(save_dir) as aside:
        with ShardWriter(aside, max_bytes, safe) as writer:
            for name in reader.names():
                tensor = reader.get(name)
                kind, shape = dtype or tensor.dtype, tensor.shape
                if name in state:
                    tensor = state[name]  # may be put together only now
                grown = name in added and tensor.shape[0] >= shape[0] and tensor.shape[1:] == shape[1:]
                if tensor.shape != shape and not grown:
                    raise UserError(
                        f"The checkpoint does not fit {base}: {name} is {tuple(tensor.shape)}, and {tuple(shape)} "
                        "there.",
                        "Give the config that this checkpoint was trained with.",
                    )
                writer.add(name, narrow(name, tensor, kind) if tensor.is_floating_point() else tensor)
        write_companions(base, aside, words, dtype=dtype, changes=changes, tell=tell)
        with writing(save_dir):
            for name, text in (extra or {}).items():
                (aside / name).write_text(text, "utf-8")


def words_of(
    spec: RunSpec,
    base: Path,
    template: ChatTemplate | None = None,
    *,
    trust_remote_code: bool,
    tell: Callable[[str], None],
) -> Speech:
    """Return the tokenizer and the template of a run: the given one, that of its data, or that of its base.

    A spec that trusts the model's own program code may be the record of somebody else's run, so it has no say in that.
    """
    folder = find_folder(spec.model.tokenizer, weights=False) if spec.model.tokenizer else base
    if trust_remote_code:
        announce_code(str(base), tell)
    tokenizer = load_tokenizer(str(folder), options=spec.model.tokenizer_options, trust_remote_code=trust_remote_code)
    if template is None:
        name = spec.data.template or detect_template(base)
        template = to_template(name if isinstance(name, str) else name.fields()) if name else None
    tokens = {key: value for key, value in spec.model.tokenizer_options.items() if key.endswith("_token")}
    return Speech(tokenizer, folder, template, tokens, renewed=spec.model.resize_vocab)
