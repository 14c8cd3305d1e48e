"""The data sets of a 0.1.x config, one reader for each word: text, tools, preferences, tokens, pictures."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from xtuner.config.table import Table
from xtuner.errors import UserError
from xtuner.legacy.phrase import Phrase, short
from xtuner.legacy.rows import as_list, read_map_function, read_rows
from xtuner.legacy.template import read_template, read_template_map

PREFERENCE_FORMATS = ("preference", "orpo_dpo_mix_40k", "intel_orca_dpo")
REFERRING = {"RefCOCOJsonDataset": "refcoco", "InvRefCOCOJsonDataset": "inv_refcoco"}
"""Words -> row formats of data about places in pictures."""


@dataclass
class Found:
    """What the data sets say: their sources, and the settings that a run has only one of, each with its place."""

    sources: list[Table] = field(default_factory=list)
    tokenizers: list[Any] = field(default_factory=list)
    processors: list[Any] = field(default_factory=list)
    pairs: set[bool] = field(default_factory=set)
    """Whether rows hold a chosen and a rejected answer."""
    shared: dict[str, tuple[Any, str, int]] = field(default_factory=dict)

    def add(self, source: Table, *, pairs: bool = False) -> None:
        """Add a source."""
        self.sources.append(source)
        self.pairs.add(pairs)

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

    def add_tokenizer(self, data: Phrase) -> None:
        """Note the tokenizer of a data set, if it has one."""
        if (tokenizer := data.take("tokenizer")) is not None:
            self.tokenizers.append(tokenizer)


def new_source(data: Phrase) -> Table:
    """Return an empty table of a `SourceSpec`."""
    return Table(file=data.table.file, line=data.table.line)


def read_hf_dataset(data: Phrase, found: Found) -> None:
    """Translate `process_hf_dataset`, and `process_ms_dataset`, which takes its rows from ModelScope."""
    data.role = "process_hf_dataset"
    data.need("dataset")
    source = new_source(data)
    split = data.take("split", "train")
    words = ("MsDataset.load",) if data.word == "process_ms_dataset" else ("load_dataset", "load_from_disk")
    loader = data.phrase("dataset", *words)
    assert loader is not None
    read_rows(loader, source, split)
    found.add_tokenizer(data)
    data.move("max_dataset_length", source, "limit")
    read_renames(data, source)
    with_output = data.take("input_ids_with_output", True)
    if data.take("with_image_token"):
        raise UserError(f"{data.where('with_image_token')}: pictures need a LLaVADataset.", "Remove with_image_token.")
    if data.take("do_dataset_tokenization", True):
        if not with_output:
            raise UserError(
                f"{data.where('input_ids_with_output')}: without the answers there is nothing to learn.",
                "Remove input_ids_with_output.",
            )
        plain = read_map_function(data, source)
        template = read_template_map(data)
        if template is not None or not plain:
            # conversations without a template are written bare; plain texts have no say
            found.agree("template", template or "plain", data, "template_map_fn")
        found.agree("max_length", data.need("max_length"), data, "max_length")
    else:
        source.put("format", "tokens", data.line("do_dataset_tokenization"))
        for argument in ("dataset_map_fn", "template_map_fn"):
            if data.take(argument) is not None:
                raise UserError(f"{data.where(argument)}: rows of tokens have no {argument}.", f"Remove {argument}.")
        if data.take("max_length") is not None:
            found.agree("max_length", data.take("max_length"), data, "max_length")
    found.agree("pack", data.take("pack_to_max_length", True), data, "pack_to_max_length")
    data.done()
    found.add(source)


def read_renames(data: Phrase, source: Table) -> None:
    """Translate `rename_maps`: pairs, or dict(old=..., new=...)."""
    renames = data.take("rename_maps") or []
    # a dump sorts the keys of a dict, so their order says nothing
    pairs = [(one["old"], one["new"]) if isinstance(one, dict) and "old" in one else tuple(one) for one in renames]
    if pairs:
        source.put("rename", dict(pairs), data.line("rename_maps"))


def read_moss(data: Phrase, found: Found) -> None:
    """Translate `MOSSSFTDataset`, whose rows bring the words of the template `moss_sft` themselves."""
    source = new_source(data)
    source.put("path", data.need("data_file"), data.line("data_file"))
    source.put("format", "moss", data.line("type"))
    if data.take("bot_name") is not None:
        data.move("bot_name", source, "bot_name")
    found.add_tokenizer(data)
    found.agree("template", "moss_sft", data, "type")
    found.agree("max_length", data.take("max_length", 2048), data, "max_length")
    found.agree("pack", False, data, "type")
    data.done()
    found.add(source)


def read_preference(data: Phrase, found: Found) -> None:
    """Translate `build_preference_dataset`; the model's own chat template writes the conversations."""
    source = new_source(data)
    data.need("dataset")
    loader = data.phrase("dataset", "load_dataset", "load_jsonl_dataset", "load_json_file", "load_from_disk")
    assert loader is not None
    read_rows(loader, source, "train")
    read_map_function(data, source)
    if source.setdefault("format", PREFERENCE_FORMATS[0]) not in PREFERENCE_FORMATS and ":" not in source["format"]:
        known = "orpo_dpo_mix_40k_map_fn, intel_orca_dpo_map_fn, or none"
        raise UserError(f"{data.where('dataset_map_fn')}: this function does not give pairs.", f"Known: {known}.")
    found.add_tokenizer(data)
    length = data.need("max_length")
    found.agree("max_length", length, data, "max_length")
    packed = data.take("use_varlen_attn", False)
    found.agree("pack", packed, data, "use_varlen_attn")
    longest = data.take("max_packed_length", 16384)
    if packed and longest != length:
        found.agree("pack_length", longest, data, "max_packed_length")
    reward, token = data.take("is_reward", False), data.take("reward_token_id", -1)
    if reward:
        found.agree("reward_token_id", token, data, "reward_token_id")
    data.done()
    found.add(source, pairs=True)


def read_packed(data: Phrase, found: Found) -> None:
    """Translate `build_packed_dataset`, which packs what an InternEvo loader gives."""
    data.need("dataset_cfg")
    inner = data.phrase("dataset_cfg", *INTERNEVO)
    assert inner is not None
    length = data.take("packed_length", 8192)
    data.done()
    read_internevo(inner, found, packed_length=length)


def read_internevo(data: Phrase, found: Found, packed_length: int | None = None) -> None:
    """Translate `load_intern_repo_tokenized_dataset` and `load_intern_repo_untokenized_dataset`."""
    tokenised = data.word == "load_intern_repo_tokenized_dataset"
    source = new_source(data)
    folder = data.take("folder")
    if not tokenised and folder is None:
        folder = data.take("processed_dataset_dict_path")
    if folder is None:
        raise UserError(f"{data.where()}: {data.word} needs folder.", "Add folder='...'.")
    source.put("path", folder, data.line("folder"))
    source.put("format", "internevo" if tokenised else "internevo_messages", data.line("type"))
    suffix = ".bin" if tokenised else ".json"
    if data.take("file_type", suffix) != suffix:
        raise UserError(f"{data.where('file_type')}: such folders hold {suffix} files.", f"Write file_type='{suffix}'.")
    if data.take("data_order_path") is not None:
        data.move("data_order_path", source, "order")
    length = packed_length
    if tokenised:
        data.move("min_length", source, "min_length")
    else:
        found.add_tokenizer(data)
        length = data.take("max_length") or packed_length
        found.agree("template", read_template_map(data) or "plain", data, "template_map_fn")
    if length is not None:
        found.agree("max_length", length, data, "max_length")
    if packed_length is not None and length is not None and packed_length > length:
        found.agree("pack_length", packed_length, data, "type")
    found.agree("pack", packed_length is not None, data, "type")
    data.done()
    found.add(source)


INTERNEVO = ("load_intern_repo_tokenized_dataset", "load_intern_repo_untokenized_dataset")


def read_llava_dataset(data: Phrase, found: Found) -> None:
    """Translate `LLaVADataset` and the two of RefCOCO."""
    source = new_source(data)
    prepared = data.take("offline_processed_text_folder") if data.word == "LLaVADataset" else None
    path = prepared or data.need("data_path")
    data.take("data_path")
    source.put("path", path, data.line("offline_processed_text_folder" if prepared else "data_path"))
    source.put("image_folder", data.need("image_folder"), data.line("image_folder"))
    read_map_function(data, source)
    if data.word in REFERRING:
        source.put("format", REFERRING[data.word], data.line("type"))
    elif prepared:
        source.put("format", "tokens", data.line("offline_processed_text_folder"))
    data.move("max_dataset_length", source, "limit")
    found.add_tokenizer(data)
    found.processors.append(data.need("image_processor"))
    template = read_template_map(data)
    if template is not None or not prepared:
        found.agree("template", template or "plain", data, "template_map_fn")
    found.agree("max_length", data.take("max_length", 2048), data, "max_length")
    found.agree("pad_to_square", data.take("pad_image_to_square", False), data, "pad_image_to_square")
    found.agree("pack", False, data, "type")
    data.done()
    found.add(source)


def read_internvl_dataset(data: Phrase, found: Found) -> None:
    """Translate `InternVL_V1_5_Dataset`: a file or several, each with its folder and its share."""
    data.need("model_path")
    paths = as_list(data.need("data_paths"))
    given = data.take("image_folders")
    folders = as_list(given) if given is not None else [None] * len(paths)
    times = data.take("repeat_times", 1)
    repeats = list(times) if isinstance(times, list | tuple) else [times] * len(paths)
    for name, values in (("image_folders", folders), ("repeat_times", repeats)):
        if len(values) != len(paths):
            raise UserError(f"{data.where(name)}: {len(values)} {name} for {len(paths)} data_paths.", "Give as many.")
    found.agree("template", read_template(data.need("template"), data.where("template")), data, "template")
    found.agree("max_length", data.take("max_length", 8192), data, "max_length")
    found.agree("pack", False, data, "type")
    for path, folder, repeat in zip(paths, folders, repeats, strict=True):
        source = new_source(data)
        source.put("path", path, data.line("data_paths"))
        source.put("format", "llava", data.line("type"))
        if folder is not None:
            source.put("image_folder", folder, data.line("image_folders"))
        source.put("repeat", repeat, data.line("repeat_times"))
        found.add(source)
    data.done()


READERS: Mapping[str, Callable[[Phrase, Found], None]] = {
    "process_hf_dataset": read_hf_dataset,
    "process_ms_dataset": read_hf_dataset,
    "MOSSSFTDataset": read_moss,
    "build_preference_dataset": read_preference,
    "build_packed_dataset": read_packed,
    "load_intern_repo_tokenized_dataset": read_internevo,
    "load_intern_repo_untokenized_dataset": read_internevo,
    "LLaVADataset": read_llava_dataset,
    "RefCOCOJsonDataset": read_llava_dataset,
    "InvRefCOCOJsonDataset": read_llava_dataset,
    "InternVL_V1_5_Dataset": read_internvl_dataset,
}
"""Word -> the function that reads its arguments."""
