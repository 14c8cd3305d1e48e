"""The data of a 0.1.x config: the loader, the data sets inside it, map functions and chat templates."""

from dataclasses import dataclass, field
from typing import Any

from xtuner.config.ref import Ref
from xtuner.config.table import Table
from xtuner.conversation.builtin import find_template
from xtuner.errors import UserError
from xtuner.legacy.model import add_tokenizer
from xtuner.legacy.phrase import Phrase, as_phrase, later, short
from xtuner.legacy.vocabulary import LATER, MAP_FUNCTIONS, dotted, name_in, word_of

DATASETS = ("process_hf_dataset", "ConcatDataset")
SAMPLERS = ("DefaultSampler", "SequenceParallelSampler", "InternRepoSampler")
INTERN_SEED = 1024
"""What `InternRepoSampler` draws with, whatever it is told."""


@dataclass
class Found:
    """What the data sets say: their sources, and the settings that a run has only one of, each with its place."""

    sources: list[Table] = field(default_factory=list)
    tokenizers: list[Any] = field(default_factory=list)
    shared: dict[str, tuple[Any, str, int]] = field(default_factory=dict)

    def agree(self, key: str, value: Any, phrase: Phrase, name: str) -> None:
        """Note a setting that all data sets must share.

        Raises:
            UserError: an earlier data set says something else.
        """
        place = phrase.where(name)
        if key in self.shared and self.shared[key][0] != value:
            other, other_place, _ = self.shared[key]
            raise UserError(
                f"{place}: {name} is {short(value)}, but {short(other)} at {other_place}.",
                f"Give all data sets of a run the same {name}.",
            )
        self.shared.setdefault(key, (value, place, phrase.line(name)))


def read_data(root: Phrase, model: Table, loop: Table) -> tuple[Table, int | None]:
    """Translate `train_dataloader` to the table of a `DataSpec`, and the seed of its sampler.

    Adds the tokenizer to `model` and the batch size to `loop`.

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
    collate = loader.phrase("collate_fn", "default_collate_fn")
    if collate is not None:
        collate.done()
    found = Found()
    loader.need("dataset")
    data = loader.phrase("dataset", *DATASETS)
    assert data is not None
    read_dataset(data, found)
    loader.done()
    spec.put("train", found.sources, loader.line("dataset"))
    for key, (value, _, line) in found.shared.items():
        if value is not None:
            spec.put(key, value, line)
    fallback = root.take("tokenizer")
    add_tokenizer(found.tokenizers or ([fallback] if fallback else []), model, loader.where("dataset"))
    return spec, seed


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
    if data.word == "process_hf_dataset":
        read_hf_dataset(data, found)
        return
    named, listed, common = data.take("datasets_cfg"), data.take("datasets"), data.take("datasets_kwargs")
    data.done()
    inner = list(named.values()) if isinstance(named, dict) else listed
    if not isinstance(inner, list | tuple) or not inner:
        raise UserError(f"{data.where()}: ConcatDataset has no data sets.", "Write datasets=[first, second].")
    for number, one in enumerate(inner):
        where = data.where("datasets" if named is None else "datasets_cfg")
        phrase = as_phrase(one, DATASETS, f"{data.path}.{number}", where)
        if isinstance(common, dict):
            merged = phrase.table.copy()
            merged.join(common)
            phrase = Phrase(merged, phrase.word, phrase.path)
        read_dataset(phrase, found)


def read_hf_dataset(data: Phrase, found: Found) -> None:
    """Translate `process_hf_dataset`."""
    data.need("dataset")
    source = Table(file=data.table.file, line=data.table.line)
    for argument, usual in (("do_dataset_tokenization", True), ("input_ids_with_output", True)):
        if data.take(argument, usual) is not usual:
            raise UserError(
                f"{data.where(argument)}: {argument}={data.take(argument)!r} is for data prepared beforehand and for "
                "tests, which this version cannot use yet.",
                "Give the rows themselves.",
            )
    split = data.take("split", "train")
    loader = data.phrase("dataset", "load_dataset")
    assert loader is not None
    read_rows(loader, source, split)
    if (tokenizer := data.take("tokenizer")) is not None:
        found.tokenizers.append(tokenizer)
    plain = read_map_function(data, source)
    data.move("max_dataset_length", source, "limit")
    read_renames(data, source)
    template = read_template(data)
    if template is not None or not plain:
        # conversations without a template are written bare; plain texts have no say
        found.agree("template", template or "plain", data, "template_map_fn")
    found.agree("max_length", data.need("max_length"), data, "max_length")
    found.agree("pack", data.take("pack_to_max_length", True), data, "pack_to_max_length")
    data.done()
    found.sources.append(source)


def read_rows(loader: Phrase, source: Table, split: str | None) -> None:
    """Translate `load_dataset`; of a dict of files only those of the split are taken."""
    source.put("path", loader.need("path"), loader.line("path"))
    loader.move("name", source, "name")
    if loader.take("split") is not None:
        split = loader.take("split")
    files = loader.take("data_files")
    if isinstance(files, dict):
        if split is not None and split not in files:
            raise UserError(
                f"{loader.where('data_files')}: data_files has no {split}, only {', '.join(map(str, files))}.",
                f"Write data_files=dict({split}=...).",
            )
        files = [file for name in files for file in as_list(files[name])] if split is None else files[split]
        # the files are those of the split already; how `datasets` calls the rest does not matter
        split = "train"
    if files is not None:
        source.put("files", list(files) if isinstance(files, tuple) else files, loader.line("data_files"))
    source.put("split", split, loader.line("split"))
    loader.done()


def as_list(value: Any) -> list[Any]:
    """Return a list of one or of all."""
    return list(value) if isinstance(value, list | tuple) else [value]


def read_map_function(data: Phrase, source: Table) -> bool:
    """Translate `dataset_map_fn` to a row format; says whether rows are plain texts."""
    function = data.take("dataset_map_fn")
    if function is None:
        return False
    where, path = data.where("dataset_map_fn"), dotted(function)
    if path is None:
        raise UserError(
            f"{where}: dataset_map_fn is {short(function)}; it must be a function's name.", "Write dataset_map_fn=None."
        )
    if path.startswith("<function"):
        raise UserError(
            f"{where}: {path} is what 0.1.x wrote for a function of a file beside the config; its name is lost.",
            "Write dataset_map_fn='that_file.py:that_function'.",
        )
    if (word := word_of(path)) in LATER:
        assert word is not None
        raise later(word, where)
    name = path.rsplit(".", 1)[-1]
    if name in MAP_FUNCTIONS and (path == name or path.startswith("xtuner.")):
        source.put("format", MAP_FUNCTIONS[name], data.line("dataset_map_fn"))
        return name == "pretrain_map_fn"
    if ":" not in path and "." not in path:
        known = ", ".join(MAP_FUNCTIONS)
        raise UserError(f"{where}: there is no map function {path}.", f"Known: {known}; or 'my_file.py:my_function'.")
    source.put("format", path if ":" in path else ":".join(path.rsplit(".", 1)), data.line("dataset_map_fn"))
    return False


def read_renames(data: Phrase, source: Table) -> None:
    """Translate `rename_maps`: pairs, or dict(old=..., new=...)."""
    renames = data.take("rename_maps") or []
    pairs = [tuple(one.values()) if isinstance(one, dict) else tuple(one) for one in renames]
    if pairs:
        source.put("rename", dict(pairs), data.line("rename_maps"))


def read_template(data: Phrase) -> str | None:
    """Translate `template_map_fn` to the name of a chat template."""
    function = data.take("template_map_fn")
    if function is None:
        return None
    phrase = as_phrase(
        function, ("template_map_fn_factory", "template_map_fn"), "template_map_fn", data.where("template_map_fn")
    )
    template = phrase.need("template")
    phrase.done()
    return read_template_name(template, phrase.where("template"))


def read_template_name(template: Any, where: str) -> str:
    """Return the name in `PROMPT_TEMPLATE.x`, imported or as a text, or a bare name.

    Raises:
        UserError: no such template, or a template written out.
    """
    name = name_in(template, "PROMPT_TEMPLATE")
    if name is None and isinstance(template, str):
        name = template
    if name is None:
        shown = template.path if isinstance(template, Ref) else short(template)
        raise UserError(f"{where}: {shown} is not a named chat template.", "Write PROMPT_TEMPLATE.internlm2_chat.")
    try:
        return find_template(name).name
    except UserError as error:
        raise UserError(f"{where}: {error.what}", error.fix) from error
