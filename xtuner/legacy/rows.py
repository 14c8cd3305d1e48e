"""Where the rows of a 0.1.x data set come from, and which function turns each into a conversation."""

from pathlib import Path
from typing import Any

from xtuner.config.table import Table
from xtuner.errors import UserError
from xtuner.legacy.phrase import Phrase, short
from xtuner.legacy.vocabulary import MAP_FUNCTIONS, dotted


def read_rows(loader: Phrase, source: Table, split: str | None) -> None:
    """Translate `load_dataset` and its like; of a dict of files only those of the split are taken.

    Raises:
        UserError: an argument that is not known, or files for other splits only.
    """
    if loader.word == "load_from_disk":
        source.put("path", loader.need("dataset_path"), loader.line("dataset_path"))
        source.put("split", split, loader.line("dataset_path"))
    elif loader.word in ("load_jsonl_dataset", "load_json_file"):
        read_json_lines(loader, source)
    elif loader.word == "MsDataset.load":
        read_modelscope(loader, source, split)
    else:
        read_load_dataset(loader, source, split)
    loader.done()


def read_load_dataset(loader: Phrase, source: Table, split: str | None) -> None:
    """Translate `load_dataset`."""
    source.put("path", loader.need("path"), loader.line("path"))
    loader.move("name", source, "name")
    if loader.take("data_dir") is not None:
        loader.move("data_dir", source, "data_dir")
    if loader.take("split") is not None:
        split = loader.take("split")
    check_delimiter(loader)
    loader.only("revision", None, "main", fix="Download that revision, and give its folder as the data.")
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


def check_delimiter(loader: Phrase) -> None:
    """Let a table's delimiter be: comma, semicolon and tab are found out from the file.

    Raises:
        UserError: another one.
    """
    for argument in ("delimiter", "sep"):
        delimiter = loader.take(argument)
        if delimiter not in (None, ",", ";", "\t"):
            raise UserError(
                f"{loader.where(argument)}: columns cannot be parted by {delimiter!r}.",
                "Save the table with commas, semicolons or tabs.",
            )


def read_modelscope(loader: Phrase, source: Table, split: str | None) -> None:
    """Translate `MsDataset.load`."""
    name = loader.need("dataset_name")
    owner = loader.take("namespace")
    source.put("path", f"{owner}/{name}" if owner and "/" not in name else name, loader.line("dataset_name"))
    source.put("hub", "modelscope", loader.line("type"))
    loader.move("subset_name", source, "name")
    loader.move("data_dir", source, "data_dir")
    loader.move("data_files", source, "files")
    source.put("split", loader.take("split") or split, loader.line("split"))


def read_json_lines(loader: Phrase, source: Table) -> None:
    """Translate `load_jsonl_dataset` and `load_json_file`: some files, or all files of a folder that end so."""
    files, folder, suffix = loader.take("data_files"), loader.take("data_dir"), loader.take("suffix")
    if (files is None) == (folder is None):
        raise UserError(f"{loader.where()}: {loader.word} needs data_files or data_dir, one of them.", "Give one.")
    if files is not None:
        source.put("path", "json", loader.line("type"))
        source.put("files", as_list(files), loader.line("data_files"))
    else:
        ending = suffix or (".jsonl" if loader.word == "load_jsonl_dataset" else ".json")
        source.put("path", folder, loader.line("data_dir"))
        source.put("files", [f"*{ending}"], loader.line("suffix"))


def as_list(value: Any) -> list[Any]:
    """Return a list of one or of all."""
    return list(value) if isinstance(value, list | tuple) else [value]


def read_map_function(data: Phrase, source: Table) -> bool:
    """Translate `dataset_map_fn` to a row format; says whether rows are plain texts.

    Raises:
        UserError: it is no name of a function, or a name that is not known.
    """
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
    name = path.rsplit(".", 1)[-1]
    if name in MAP_FUNCTIONS and (path == name or path.startswith("xtuner.")):
        source.put("format", MAP_FUNCTIONS[name], data.line("dataset_map_fn"))
        return name == "pretrain_map_fn"
    if ":" not in path and "." not in path:
        known = ", ".join(MAP_FUNCTIONS)
        raise UserError(f"{where}: there is no map function {path}.", f"Known: {known}; or 'my_file.py:my_function'.")
    source.put("format", own_name(path, data.table.file), data.line("dataset_map_fn"))
    return False


def own_name(path: str, config: str) -> str:
    """Return `module:name` or `file.py:name` of something of the user's own; files may lie beside the config."""
    if ":" not in path:
        return ":".join(path.rsplit(".", 1))
    file, _, name = path.rpartition(":")
    beside = Path(config).parent / file
    return f"{beside}:{name}" if file.endswith(".py") and not Path(file).is_file() and beside.is_file() else path
