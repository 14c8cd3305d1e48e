"""The data loader of a 0.1.x config: its sampler, its data set or several of them, and what all of them share."""

from typing import Any

from xtuner.config.table import Table
from xtuner.errors import UserError
from xtuner.legacy.dataset import READERS, Found
from xtuner.legacy.model import add_tokenizer
from xtuner.legacy.phrase import Phrase, as_phrase
from xtuner.legacy.vision import add_processor

CONCAT = "ConcatDataset"
DATASETS = (*READERS, CONCAT)
SAMPLERS = (
    *("DefaultSampler", "SequenceParallelSampler", "InternRepoSampler", "LengthGroupedSampler", "InfiniteSampler"),
)
COLLATES = ("default_collate_fn", "preference_collate_fn")
PAIRED = ("dpo", "orpo", "reward")
"""Objectives that learn from a chosen and a rejected answer."""
INTERN_SEED = 1024
"""What `InternRepoSampler` draws with, whatever it is told."""
LONGEST = 1_048_576
"""`max_length` of rows that were made into tokens beforehand and are taken as long as they are."""


def read_data(root: Phrase, model: Table, objective: Table, loop: Table) -> tuple[Table, int | None]:
    """Translate `train_dataloader` to the table of a `DataSpec`, and the seed of its sampler.

    Adds the tokenizer and the image processor to `model`, the token that a reward is read at to `objective`, and the
    batch size to `loop`.

    Raises:
        UserError: a word or an argument that is not known or cannot be followed.
    """
    root.need("train_dataloader")
    loader = root.part("train_dataloader")
    assert loader is not None
    loader.move("batch_size", loop, "batch_size")
    spec = Table(file=loader.table.file, line=loader.table.line)
    seed = read_sampler(loader, spec)
    batches = loader.phrase("batch_sampler", "BatchSampler")
    if batches is not None:
        batches.move("batch_size", loop, "batch_size")
        batches.done()
    collate = loader.phrase("collate_fn", *COLLATES)
    if collate is not None:
        collate.role = COLLATES[0]
        collate.done()
    loader.need("dataset")
    data = loader.phrase("dataset", *DATASETS)
    assert data is not None
    add_data(data, root, model, objective, spec)
    loader.done()
    return spec, seed


def add_data(data: Phrase, root: Phrase, model: Table, objective: Table, spec: Table) -> None:
    """Translate a data set into `spec`, the table of a `DataSpec`; adds to `model` and `objective` (see above).

    Raises:
        UserError: pairs for a model that does not learn from pairs, or other rows for one that does.
    """
    found = Found()
    read_dataset(data, found)
    if found.pairs != {objective["name"] in PAIRED}:
        wanted = "pairs: build_preference_dataset" if objective["name"] in PAIRED else "conversations or texts"
        raise UserError(
            f"{data.where()}: {objective['name']} learns from {wanted}.", "Choose another data set or model."
        )
    spec.put("train", found.sources, data.table.line)
    for key, (value, place, line) in found.shared.items():
        if key == "pad_to_square":
            if value:
                see_with(model, place).put(key, value, line)
        elif key == "reward_token_id":
            objective["options"].put(key, value, line)
        elif value is not None:
            spec.put(key, value, line)
    if "max_length" not in found.shared:
        written = root.take("max_length")
        spec.put("max_length", written if isinstance(written, int) else LONGEST, data.table.line)
    for processor in found.processors:
        add_processor(processor, see_with(model, data.where()), data.where("image_processor"))
    own = root.take("model").get("tokenizer")  # the model's embeddings grow to this one
    tokenizers = [*found.tokenizers, *([own] if own is not None else [])]
    fallback = root.take("tokenizer")
    add_tokenizer(tokenizers or ([fallback] if fallback else []), model, data.where())


def see_with(model: Table, where: str) -> Table:
    """Return the encoder's part of the model.

    Raises:
        UserError: the model reads text alone.
    """
    vision = model.get("vision")
    if not isinstance(vision, Table):
        raise UserError(f"{where}: these data have pictures, and the model reads text alone.", "Use type=LLaVAModel.")
    return vision


def read_sampler(loader: Phrase, spec: Table) -> int | None:
    """Translate the sampler: does it shuffle, and with which seed."""
    sampler = loader.phrase("sampler", *SAMPLERS)
    if sampler is None:
        return None
    sampler.role = SAMPLERS[0]
    sampler.move("shuffle", spec, "shuffle")
    seed = sampler.take("seed")
    sampler.done()
    return INTERN_SEED if sampler.word == "InternRepoSampler" else seed


def read_dataset(data: Phrase, found: Found) -> None:
    """Translate one data set, or all of a `ConcatDataset` (both spellings)."""
    if data.word != CONCAT:
        READERS[data.word](data, found)
        return
    named, listed, common = data.take("datasets_cfg"), data.take("datasets"), data.take("datasets_kwargs")
    data.done()
    inner = list(named.values()) if isinstance(named, dict) else listed
    if not isinstance(inner, list | tuple) or not inner:
        raise UserError(f"{data.where()}: ConcatDataset has no data sets.", "Write datasets=[first, second].")
    for number, one in enumerate(inner):
        where = data.where("datasets" if named is None else "datasets_cfg")
        phrase = as_phrase(with_common(one, common), DATASETS, f"{data.path}.{number}", where)
        read_dataset(phrase, found)


def with_common(one: Any, common: Any) -> Any:
    """Return a data set with the arguments that v0.1.9 gave to all of them."""
    if not (isinstance(one, Table) and isinstance(common, dict)):
        return one
    merged = one.copy()
    merged.join(common)
    return merged
