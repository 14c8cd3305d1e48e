"""Data sets of the recipe book: where the rows are, and which map function reads them."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class SourceRow:
    """One data set. `variable` and `path_variable` are the names that it has in a config."""

    variable: str
    path_variable: str
    path: str | tuple[str, ...]
    map_function: str | None
    """None: rows are conversations already; "": the config does not say."""
    loader: tuple[tuple[str, str], ...] = (("path", "{path}"),)
    """Arguments of `load_dataset`; `{path}` stands for the path variable."""
    alone: bool = False
    """Keeps its own variable when it is the only data set; others are then called `train_dataset`, at `data_path`."""
    keeps_path: bool = False
    """Keeps its path variable even when it is called `train_dataset`."""
    kind: str = "process_hf_dataset"
    loader_type: str = "load_dataset"
    settings: tuple[tuple[str, str], ...] = field(default=())
    """Further variables of PART 1."""
    tokens: bool = False
    """Whether rows are tokens already."""


HUB = (("path", "{path}"),)
JSON_FILE = (("path", "'json'"), ("data_files", "dict(train={path})"))
JSON_FILES = (("path", "'json'"), ("data_files", "{path}"))
FILES = ("/path/to/json/file.json",)


def single(path: str, map_function: str | None, loader: tuple[tuple[str, str], ...] = HUB) -> SourceRow:
    """Make a row of a data set that is used alone."""
    return SourceRow("train_dataset", "data_path", path, map_function, loader)


def own_files(map_function: str | None) -> SourceRow:
    """Make a row of the user's own files."""
    return SourceRow("train_dataset", "data_files", FILES, map_function, JSON_FILES)


def moss(variable: str, path: str) -> SourceRow:
    """Make a row of MOSS data."""
    return SourceRow(variable, f"{variable}_path", path, "", (), keeps_path=True, kind="MOSSSFTDataset")


def packed(loader: str, *arguments: tuple[str, str], path: str = "/path/to/sft/data/folder") -> SourceRow:
    """Make a row of a folder of the InternLM team."""
    kind = "build_packed_dataset"
    return SourceRow("train_dataset", "dataset_folder", path, None, arguments, kind=kind, loader_type=loader)


ORDER = ("data_order_path", "None")
TOKENIZED = (("folder", "{path}"), ("min_length", "0"), ("file_type", "'.bin'"))
UNTOKENIZED = (
    ("folder", "{path}"),
    ("tokenizer", "tokenizer"),
    ("max_length", "max_length"),
    ("template_map_fn", "dict(type=template_map_fn_factory, template=prompt_template)"),
    ("file_type", "'.json'"),
)
# the first eight of 136 files: enough for 400 iterations
BOOK_FILES = (
    "877a1768c20d5900",
    "70d7d139dca61754",
    "62d53594e098f3d8",
    "8bd300fecc4c720e",
    "2a9456b5f975ae95",
    "ca38cf7907bb7555",
    "1ae2e4c63f3966da",
    "a00cc39a4ee65ab6",
)

SOURCES: dict[str, SourceRow] = {
    "alpaca": SourceRow("alpaca_en", "alpaca_en_path", "tatsu-lab/alpaca", "alpaca_map_fn", alone=True),
    "alpaca_zh": SourceRow(
        "alpaca_zh", "alpaca_zh_path", "silk-road/alpaca-data-gpt4-chinese", "alpaca_zh_map_fn", alone=True
    ),
    "alpaca_alone": single("tatsu-lab/alpaca", "alpaca_map_fn"),
    # Chinese rows under the English name: as the configs of MiniCPM have it
    "alpaca_zh_as_en": SourceRow(
        "alpaca_en", "alpaca_en_path", "silk-road/alpaca-data-gpt4-chinese", "alpaca_zh_map_fn", alone=True
    ),
    "oasst1": SourceRow("oasst1", "oasst1_path", "timdettmers/openassistant-guanaco", "oasst1_map_fn"),
    "crime": SourceRow(
        "crime_kg_assitant",
        "crime_kg_assitant_path",
        "./data/CrimeKgAssitant清洗后_52k.json",
        "crime_kg_assitant_map_fn",
        JSON_FILE,
    ),
    "law": SourceRow(
        "law_reference_data",
        "law_reference_data_path",
        "./data/训练数据_带法律依据_92k.json",
        "law_reference_map_fn",
        JSON_FILE,
    ),
    "arxiv": single("./data/arxiv_data.json", "arxiv_map_fn", JSON_FILE),
    "code_alpaca": single("HuggingFaceH4/CodeAlpaca_20K", "code_alpaca_map_fn"),
    "colors": single("burkelibbey/colors", "colors_map_fn"),
    "sql": single("b-mc2/sql-create-context", "sql_map_fn"),
    "open_platypus": single("garage-bAInd/Open-Platypus", "alpaca_map_fn"),
    "openorca": single("Open-Orca/OpenOrca", "openorca_map_fn"),
    "tiny_codes": single("nampdn-ai/tiny-codes", "tiny_codes_map_fn"),
    "wizardlm": single("WizardLM/WizardLM_evol_instruct_V2_196k", "wizardlm_map_fn"),
    "skypile": single("Skywork/SkyPile-150B", "pretrain_map_fn"),
    "medical": SourceRow(
        "train_dataset",
        "data_path",
        "shibing624/medical",
        "medical_map_fn",
        (*HUB, ("name", "data_config_name")),
        settings=(("data_config_name", "'finetune'"),),
    ),
    "stack_exchange": single(
        "ArmelR/stack-exchange-instruction",
        "stack_exchange_map_fn",
        (*HUB, ("data_dir", "'data/finetune'"), ("split", "'train'")),
    ),
    "json": single("path/to/your/json_data", "", JSON_FILE),
    "msagent": SourceRow(
        "train_dataset",
        "data_path",
        "damo/MSAgent-Bench",
        "msagent_react_map_fn",
        (("dataset_name", "{path}"),),
        kind="process_ms_dataset",
        loader_type="MsDataset.load",
    ),
    "custom_pretrain": own_files("pretrain_map_fn"),
    "custom_sft": own_files("openai_map_fn"),
    "custom": own_files(None),
    "tokenized": packed("load_intern_repo_tokenized_dataset", ORDER, *TOKENIZED),
    "tokenized_template": packed("load_intern_repo_tokenized_dataset", *TOKENIZED, path="/path/to/your/train/dataset"),
    "untokenized": packed("load_intern_repo_untokenized_dataset", ORDER, *UNTOKENIZED),
    "untokenized_template": packed("load_intern_repo_untokenized_dataset", *UNTOKENIZED),
    "moss": moss("moss_sft_no_plugins", "./data/moss-003-sft-no-tools.jsonl"),
    "moss_plugins": moss(
        "moss_sft_plugins",
        "./data/conversations_with_tools_with_inner_instruction_no_text2image_train_all_random_meta0.5_0.1_0.01"
        "_moss_0709.jsonl",
    ),
    "books": SourceRow(
        "train_dataset",
        "data_path",
        "emozilla/pg_books-tokenized-bos-eos-chunked-65536",
        "",
        (*HUB, ("data_files", "data_files")),
        settings=(
            (
                "data_files",
                str([f"data/train-{place:05}-of-00136-{key}.parquet" for place, key in enumerate(BOOK_FILES)]),
            ),
        ),
        tokens=True,
    ),
}
