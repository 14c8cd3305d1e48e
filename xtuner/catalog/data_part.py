"""Writes PART 3 of a config, and the blocks of it that several kinds of configs share."""

from collections.abc import Sequence
from typing import Any

from xtuner.catalog.mmlu import mmlu_data
from xtuner.catalog.page import Page, TextPage
from xtuner.catalog.settings import path_variable, variable
from xtuner.catalog.sources import SOURCES, SourceRow
from xtuner.catalog.text import Call, assign, call, write

PACKED = ("use_varlen_attn", "use_varlen_attn")


def concatenated(variables: Sequence[str]) -> str:
    """Write `train_dataset`, which is several data sets one after another."""
    return assign("train_dataset", call([("type", "ConcatDataset"), ("datasets", list(variables))]))


def loader(page: Page, dataset: str, collate: str = "default_collate_fn", *further: tuple[str, Any] | None) -> str:
    """Write `train_dataloader`, with its sampler above it where that depends on a variable."""
    above = ""
    if page.sampler == "intern":
        sampler = call([("type", "InternRepoSampler"), ("shuffle", "True"), ("seed", "1024")])
    elif page.sampler == "parallel":
        sampler = call([("type", "SequenceParallelSampler"), ("seed", "1024")])
    elif page.sampler == "length":
        size = "batch_size * accumulative_counts"
        sampler = call(
            [
                ("type", "LengthGroupedSampler"),
                ("length_property", "'modality_length'"),
                ("per_device_batch_size", size),
            ]
        )
    elif page.parallel is None:
        sampler = call([("type", "DefaultSampler"), ("shuffle", "True")])
    else:
        above = "sampler = SequenceParallelSampler if sequence_parallel_size > 1 else DefaultSampler\n\n"
        sampler = call([("type", "sampler"), ("shuffle", "True")])
    batches = call([("type", "BatchSampler"), ("drop_last", "True"), ("batch_size", "1")])
    whole = call(
        [
            ("batch_size", "batch_size"),
            ("num_workers", "dataloader_num_workers"),
            *further,
            ("dataset", dataset),
            ("sampler", sampler),
            ("batch_sampler", batches) if page.sampler == "intern" else None,
            ("collate_fn", call([("type", collate), PACKED if page.varlen is not None else None])),
        ]
    )
    return above + assign("train_dataloader", whole)


def template_function(page: Page) -> str:
    """Write what puts conversations into the words of the chat template."""
    if page.template is None:
        return "None"
    return write(call([("type", "template_map_fn_factory"), ("template", "prompt_template")]))


def data(page: TextPage) -> str:
    """Write PART 3 of supervised training on texts."""
    rows = [SOURCES[key] for key in page.data]
    alone = len(rows) == 1
    blocks = [assign(variable(row, alone), data_set(page, row, path_variable(row, alone))) for row in rows]
    name = variable(rows[0], alone)
    if not alone:
        name = "train_dataset"
        blocks.append(concatenated([row.variable for row in rows]))
    blocks.append(loader(page, name))
    if page.mmlu:
        blocks.append(mmlu_data())
    return "\n\n".join(blocks)


def data_set(page: TextPage, row: SourceRow, path: str) -> Call:
    """Write one data set; `path` is the variable that holds its place."""
    if row.kind == "MOSSSFTDataset":
        return call(
            [
                ("type", row.kind),
                ("data_file", path),
                ("bot_name", "bot_name"),
                ("tokenizer", "tokenizer"),
                ("max_length", "max_length"),
            ]
        )
    rows = call([("type", row.loader_type), *((name, value.format(path=path)) for name, value in row.loader)])
    if row.kind == "build_packed_dataset":
        return call([("type", row.kind), ("dataset_cfg", rows), ("packed_length", "max_length"), ("seed", "1024")])
    packing = [
        ("remove_unused_columns", "True"),
        ("shuffle_before_pack", str(page.shuffle_before_pack)) if not row.tokens else None,
        ("pack_to_max_length", "pack_to_max_length"),
        PACKED if page.varlen is not None else None,
    ]
    if row.tokens:
        return call([("type", row.kind), ("dataset", rows), ("do_dataset_tokenization", "False"), *packing])
    return call(
        [
            ("type", row.kind),
            ("dataset", rows),
            ("tokenizer", "tokenizer"),
            ("max_length", "max_length"),
            ("dataset_map_fn", row.map_function or "None") if row.map_function != "" else None,
            ("template_map_fn", template_function(page)),
            ("max_dataset_length", "max_dataset_length") if page.max_dataset_length is not None else None,
            *packing,
        ]
    )
