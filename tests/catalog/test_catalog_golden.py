"""Every rendered config says what the config of that name said in 0.1.23.

Golden: `golden/catalog/catalog.jsonl.gz`, the run configs of v0.1.23 as mmengine read them, imported names as
`<dotted.name>`, top-level names of imported things, sample questions and long texts left out.
"""

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from xtuner.catalog.models import MODELS
from xtuner.catalog.names import check_name, names
from xtuner.catalog.questions import QUESTIONS
from xtuner.catalog.recipes import RECIPES
from xtuner.catalog.render import render
from xtuner.config.reader import read_text
from xtuner.config.ref import Ref
from xtuner.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "catalog" / "catalog.jsonl.gz"
LEFT_OUT = "(text)"

# where the old config said something that no longer makes sense: name pattern -> path pattern -> what ours says
CORRECTIONS: list[tuple[str, str, str]] = [
    (r"minicpm_.*lora_alpaca_zh_e3", r"gradient_checkpointing", "a variable that nothing used; dropped"),
    (r".*_w_untokenized_dataset", r".*\b(dataset_folder|folder)", "a folder of somebody's cluster; now a placeholder"),
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


@pytest.mark.parametrize("model", [model.key for model in MODELS])
def test_rendered_configs_say_what_they_said(model: str) -> None:
    row = next(row for row in MODELS if row.key == model)
    for recipe in sorted(row.recipes):
        name = f"{model}_{recipe}"
        values = plain(read_text(render(name), Path(f"{name}.py"), "python").values)
        ours = {key: value for key, value in values.items() if not re.fullmatch(r"<[\w.]+>", str(value))}
        # two folders of 0.1.23 held a config of the same name: either will do
        wrong = min((list(differences(ours, theirs)) for theirs in OLD[name]), key=len)
        assert [path for path in wrong if not corrected(name, path)] == [], name


def test_corrections_are_needed() -> None:
    for pattern, _, why in CORRECTIONS:
        assert [name for name in names() if re.fullmatch(pattern, name)], why


def test_names() -> None:
    assert set(names()) <= set(OLD)
    assert list(names()) == sorted(set(names()))
    text_models = [name for name in OLD if name.startswith("internlm2_")]
    missing = {name for name in text_models if name not in names()}
    assert all(re.search(r"_(dpo|orpo|reward)_", name) for name in missing), missing
    assert [name for name in names() if "internlm2_1_8b" in name] == [
        "internlm2_1_8b_full_alpaca_e3",
        "internlm2_1_8b_full_custom_pretrain_e1",
        "internlm2_1_8b_qlora_alpaca_e3",
    ]
    assert {recipe for model in MODELS for recipe in model.recipes} == set(RECIPES), "no recipe without a model"
    with pytest.raises(UserError, match="Did you mean internlm2_chat_1_8b_qlora_alpaca_e3"):
        check_name("internlm2_chat_1_8b_qlora_alpca_e3")


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
    for name in names():
        text = render(name)
        code = re.sub(r"#.*|'[^'\n]*'", "", text.split('"""', 2)[2])
        imported = set(re.findall(r"^\s*(?:from .* )?import (.*)$", code, re.M))
        for symbols in imported:
            for symbol in re.findall(r"[A-Za-z_]\w*", symbols):
                assert len(re.findall(rf"\b{symbol}\b", code)) > 1, (name, symbol)
        questions = re.search(r"SYSTEM = .*?\n\]", text, re.S)
        rest = text.replace(questions[0], "") if questions else text
        assert max(map(len, rest.splitlines())) <= 160, name
    assert all(len(texts) >= 1 for texts in QUESTIONS.values())
