"""Every rendered config says what the config of that name said in 0.1.23.

Golden: `golden/catalog/catalog.jsonl.gz`, the run configs of v0.1.23 as mmengine read them, imported names as
`<dotted.name>`, top-level names of imported things, sample questions and long texts left out.
Golden: `golden/catalog/names.json.gz`, what `list-cfg` printed in 0.1.23, each name with the version it came with.
"""

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from xtuner.catalog.deepspeed import ZERO
from xtuner.catalog.models import MODELS
from xtuner.catalog.names import check_name, names, run_names
from xtuner.catalog.questions import QUESTIONS
from xtuner.catalog.recipes import RECIPES
from xtuner.catalog.render import render, render_file
from xtuner.catalog.script import SCRIPTS
from xtuner.catalog.vision_sources import VISION_SOURCES
from xtuner.config.reader import read_text
from xtuner.config.ref import Ref
from xtuner.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "catalog" / "catalog.jsonl.gz"
NAMES = GOLDEN.with_name("names.json.gz")
LEFT_OUT = "(text)"

# where the old config said something that no longer makes sense: name pattern -> path pattern -> what ours says
CORRECTIONS: list[tuple[str, str, str]] = [
    (r"minicpm_.*lora_alpaca_zh_e3", r"gradient_checkpointing", "a variable that nothing used; dropped"),
    (r".*_w_untokenized_dataset", r".*\b(dataset_folder|folder)", "a folder of somebody's cluster; now a placeholder"),
    (r".*_pgbooks_.*", r".*\.ignore_verifications", "an argument that `datasets` 3 removed; dropped"),
    (
        r"deepseek_v2_.*",
        r"default_hooks\.checkpoint\.save_optimizer",
        "a variable that did nothing; now it does",
    ),
]


def golden() -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    with gzip.open(GOLDEN, "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            found.setdefault(row["name"], []).append(row["config"])
    return found


OLD = golden()


def plain(value: Any) -> Any:
    if isinstance(value, Ref):
        return f"<{value.path}>"
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if key != "evaluation_inputs"}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def differences(ours: Any, theirs: Any, path: str = "") -> Iterator[str]:
    if theirs == LEFT_OUT:
        return
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted(ours.keys() | theirs.keys()):
            if key in ours and key in theirs:
                yield from differences(ours[key], theirs[key], f"{path}.{key}".strip("."))
            else:
                yield f"{path}.{key}".strip(".")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for place, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from differences(one, other, f"{path}[{place}]")
    elif ours != theirs or type(ours) is not type(theirs):
        yield path


def corrected(name: str, path: str) -> bool:
    return any(re.fullmatch(names_, name) and re.fullmatch(paths, path) for names_, paths, _ in CORRECTIONS)


def read(name: str) -> dict[str, Any]:
    """The settings of a rendered config, imported names left out as in the golden."""
    values = plain(read_text(render(name), Path(f"{name}.py"), "python").values)
    return {key: value for key, value in values.items() if not re.fullmatch(r"<[\w.]+>", str(value))}


def wrong_paths(name: str) -> list[str]:
    # two folders of 0.1.23 held a config of the same name: either will do
    return min((list(differences(read(name), theirs)) for theirs in OLD[name]), key=len)


@pytest.mark.parametrize("model", sorted({model.key for model in MODELS}))
def test_rendered_configs_say_what_they_said(model: str) -> None:
    for name in (f"{model}_{end}" for row in MODELS if row.key == model for end in row.recipes):
        if name in OLD:
            assert [path for path in wrong_paths(name) if not corrected(name, path)] == [], name


def test_corrections_are_needed() -> None:
    for pattern, path, why in CORRECTIONS:
        found = [name for name in OLD if re.fullmatch(pattern, name)]
        assert any(re.fullmatch(path, wrong) for name in found for wrong in wrong_paths(name)), why


def test_names_are_those_of_old() -> None:
    first = json.loads(gzip.decompress(NAMES.read_bytes()))
    assert list(names()) == sorted(first)
    assert len(names()) == 585
    assert set(run_names()) - set(OLD) == {name for name in run_names() if name.endswith("_hf")}
    assert set(OLD) <= set(run_names())
    assert [name for name in names() if "internlm2_1_8b" in name] == [
        "internlm2_1_8b_full_alpaca_e3",
        "internlm2_1_8b_full_custom_pretrain_e1",
        "internlm2_1_8b_qlora_alpaca_e3",
    ]
    assert sum(version == "v0.1.9" for version in first.values()) == 301


def test_rows_are_used_once() -> None:
    ends = [f"{model.key}_{end}" for model in MODELS for end in model.recipes]
    assert len(ends) == len(set(ends))
    assert {recipe for model in MODELS for recipe in model.recipes.values()} == set(RECIPES)
    sources = {key for recipe in RECIPES.values() for key in recipe.get("data", ())}
    assert set(VISION_SOURCES) <= sources


def test_unknown_names_get_the_nearest() -> None:
    for wrong, near in (
        ("internlm2_chat_1_8b_qlora_alpca_e3", "internlm2_chat_1_8b_qlora_alpaca_e3"),
        ("deepspeed_zero4", "deepspeed_zero"),
        ("internvl_v2_internlm2_2b_qlora_fintune", "internvl_v2_internlm2_2b_qlora_finetune"),
    ):
        with pytest.raises(UserError, match=f"Did you mean {near}"):
            check_name(wrong)


# origin: TrainingArguments of 0.1.23, the same in all three configs but for these
@pytest.mark.parametrize(
    ("name", "epochs", "lr", "optimizer", "lora", "template"),
    [
        ("internlm_7b_qlora_oasst1_e3_hf", 3, 2e-4, "paged_adamw_32bit", (64, 0.1, None), "default"),
        ("llama2_70b_qlora_open_platypus_e1_hf", 1, 3e-4, "adamw_torch", (64, 0.1, "gate_proj"), "llama2_chat"),
        ("llama2_70b_int8_lora_open_platypus_e1_hf", 1, 3e-4, "adamw_torch", (16, 0.05, "gate_proj"), "llama2_chat"),
    ],
)
def test_configs_of_the_trainer(
    name: str, epochs: int, lr: float, optimizer: str, lora: tuple[int, float, str | None], template: str
) -> None:
    config = read(name)
    assert config["framework"] == "huggingface"
    assert config["training_args"] == {
        "type": "<transformers.TrainingArguments>",
        "do_train": True,
        "learning_rate": lr,
        "weight_decay": 0,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 100,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 16,
        "num_train_epochs": epochs,
        "fp16": True,
        "logging_steps": 1,
        "optim": optimizer,
        "save_strategy": "steps",
        "save_steps": 1000,
        "save_total_limit": 2,
        "ddp_find_unused_parameters": False,
    }
    r, dropout, target = lora
    assert (config["lora"]["r"], config["lora"]["lora_dropout"]) == (r, dropout)
    assert target is None or target in config["lora"]["target_modules"]
    assert config["model"].get("load_in_8bit", False) == ("int8" in name)
    assert ("quantization_config" in config["model"]) == ("qlora" in name)
    data = config["train_dataset"]
    assert data["dataset"]["path"] == config["dataset_name_or_path"]
    assert data["template_map_fn"]["template"] == f"<xtuner.utils.PROMPT_TEMPLATE.{template}>"
    assert "trainer = Trainer" in render(name)


def test_deepspeed_configs_are_json() -> None:
    for name in ZERO:
        text, suffix = render_file(name)
        config = json.loads(text)
        zero = config["zero_optimization"]
        assert suffix == ".json"
        assert zero["stage"] == int(name[len("deepspeed_zero")])
        assert ("offload_optimizer" in zero) == name.endswith("_offload")
        assert ("offload_param" in zero) == (name == "deepspeed_zero3_offload")
        assert ("stage3_gather_16bit_weights_on_model_save" in zero) == ("zero3" in name)
        for key in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"):
            assert config[key] == "auto", "the config of the run says it"
        assert config["bf16"]["enabled"] == config["fp16"]["enabled"] == "auto"
        with pytest.raises(UserError, match="DeepSpeed is not part of this version yet"):
            render(name)


def test_scripts_say_what_takes_their_place() -> None:
    for name in SCRIPTS:
        with pytest.raises(UserError, match="was a script") as caught:
            render_file(check_name(name))
        assert caught.value.fix == SCRIPTS[name]
        assert caught.value.fix.count(". ") == 0, "one sentence"


def test_the_text_has_the_lines_that_courses_edit() -> None:
    text = render("internlm2_chat_1_8b_qlora_alpaca_e3")
    for line in (
        "pretrained_model_name_or_path = 'internlm/internlm2-chat-1_8b'",
        "alpaca_en_path = 'tatsu-lab/alpaca'",
        "prompt_template = PROMPT_TEMPLATE.internlm2_chat",
        "SYSTEM = SYSTEM_TEMPLATE.alpaca",
        "evaluation_inputs = [",
        "    dataset=dict(type=load_dataset, path=alpaca_en_path),",
        "    dataset_map_fn=alpaca_map_fn,",
        "from xtuner.dataset.map_fns import alpaca_map_fn, template_map_fn_factory",
        "custom_hooks = [",
        "    dict(type=DatasetInfoHook, tokenizer=tokenizer),",
    ):
        assert line in text.splitlines(), line
    for number in range(1, 6):
        assert f"  PART {number}  " in text
    pretrain = render("internlm2_1_8b_full_custom_pretrain_e1").splitlines()
    for line in ("data_files = ['/path/to/json/file.json']", "SYSTEM = ''", "    template_map_fn=None,"):
        assert line in pretrain, line


def test_texts_are_python_without_loose_ends() -> None:
    for name in run_names():
        text = render(name)
        code = re.sub(r"#.*|'[^'\n]*'", "", text.split('"""', 2)[2])
        imported = set(re.findall(r"^\s*(?:from .* )?import (.*)$", code, re.M))
        for symbols in imported:
            for symbol in re.findall(r"[A-Za-z_]\w*", symbols):
                assert len(re.findall(rf"\b{symbol}\b", code)) > 1, (name, symbol)
        questions = re.search(r"SYSTEM = .*?\n\]", text, re.S)
        rest = text.replace(questions[0], "") if questions else text
        assert max(map(len, rest.splitlines())) <= 160, name
        assert [f"  PART {number}  " in text for number in range(1, 6)] == [True] * 5, name
    assert all(len(texts) >= 1 for texts in QUESTIONS.values())
