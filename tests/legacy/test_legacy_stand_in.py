"""Every distinct pipeline of the catalogue runs: two iterations of a tiny model on rows in the real format."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny import make_tiny_internlm2, make_tiny_llama, make_tiny_qwen2

from xtuner.catalog.names import run_names
from xtuner.catalog.render import render
from xtuner.checkpoint.run_record import read_run
from xtuner.config.choice import Choice
from xtuner.config.later import missing_parts
from xtuner.config.reader import read_text
from xtuner.config.spec import RunSpec, SourceSpec
from xtuner.dataset import FORMATS
from xtuner.engine.train import train
from xtuner.legacy.run import to_run_spec

GOLDEN = Path(__file__).parent.parent / "golden"
SAMPLES = json.loads((GOLDEN / "xtuner_data" / "expected_map_fns.json").read_text("utf-8"))
FAMILIES = ("internlm2", "qwen")
"""Families with a stand-in of their own; a Llama stands for the others."""


MOSS_TURN = {
    "Human": "<|Human|>: What is 2 + 2?<eoh>\n",
    "Inner Thoughts": "<|Inner Thoughts|>: None<eot>\n",
    "Commands": "<|Commands|>: Calculate(2+2)<eoc>\n",
    "Tool Responses": "<|Results|>:\nCalculate(2+2) => 4\n<eor>\n",
    "MOSS": "<|MOSS|>: It is 4.<eom>\n",
}
ROWS = {
    "conversation": [{"conversation": [{"input": "Hello", "output": f"Hello to you, {i}."}]} for i in range(4)],
    "moss": [{"meta_instruction": "You are MOSS.\n", "num_turns": 1, "chat": {"turn_1": MOSS_TURN}}],
    "tokens": [{"input_ids": [5, 6, 7, 8, 9], "labels": [-100, -100, 7, 8, 9]}],
    "internevo": [{"tokens": [-5, -6, 7, 8, 9]}],
    "internevo_messages": [[{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}]],
}
"""Rows of formats that the golden cases do not have."""
FOLDERS = {"internevo": "part.bin", "internevo_messages": "part.json"}
"""Formats whose sources are folders, and a file in such a folder."""


@dataclass(frozen=True)
class Pipeline:
    """What makes one run different from another."""

    form: str
    formats: tuple[str, ...]
    template: str | None
    pack: bool
    family: str


def pipeline_of(spec: RunSpec) -> Pipeline:
    assert not isinstance(spec.data.template, str) or spec.data.template
    bits = f" in {spec.model.quant.bits} bits" if spec.model.quant else ""
    form = f"{'LoRA' if spec.model.lora else 'full'}{bits}"
    formats = tuple(sorted({source.format or "conversation" for source in spec.data.train}))
    family = next((name for name in FAMILIES if name in spec.model.path.lower()), "llama")
    template = spec.data.template
    assert template is None or isinstance(template, str)
    return Pipeline(form, formats, template, spec.data.pack, family)


def distinct() -> dict[Pipeline, RunSpec]:
    found: dict[Pipeline, RunSpec] = {}
    for name in run_names():
        spec = to_run_spec(read_text(render(name), Path(f"{name}.py"), "python"))
        pipeline = pipeline_of(spec)
        if next(missing_parts(spec), None) is None and set(pipeline.formats) <= set(FORMATS):
            found.setdefault(pipeline, spec)
    return found


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    qwen = make_tiny_qwen2(folder / "qwen", layers=1, hidden=32, vocab_size=752)
    for file in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        (qwen / file).write_bytes((GOLDEN / "llama_tokenizer" / file).read_bytes())
    return {
        "internlm2": make_tiny_internlm2(folder / "internlm2", layers=1, hidden=32),
        "llama": make_tiny_llama(folder / "llama", layers=1, hidden=32),
        "qwen": qwen,
    }


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One file for each format, with the rows of the golden cases often enough to fill two batches."""
    folder = tmp_path_factory.mktemp("rows")
    files = {}
    for name in FORMATS:
        cases = [case["in"] for case in SAMPLES.get(name, [])]
        cases = ROWS.get(name, cases)
        if cases:
            files[name] = folder / name / FOLDERS.get(name, "rows.jsonl")
            files[name].parent.mkdir()
            lines = (json.dumps(case, ensure_ascii=False) for case in cases * 10)
            files[name].write_text("\n".join(lines), "utf-8")
    return files


def stand_in(spec: RunSpec, family: str, models: dict[str, Path], rows: dict[str, Path], folder: Path) -> RunSpec:
    """The same run with a tiny model, tiny data and two iterations."""
    train = []
    for source in spec.data.train:
        file = rows[source.format or "conversation"]
        path = file.parent if source.format in FOLDERS else file
        train.append(SourceSpec(path=str(path), format=source.format, bot_name=source.bot_name))
    tiny = spec.model_copy(deep=True)
    tiny.model.path, tiny.model.tokenizer, tiny.model.tokenizer_options = str(models[family]), None, {}
    if tiny.model.lora is not None:
        tiny.checkpoint.every, tiny.checkpoint.last = None, False  # the adapter is written anyway
        tiny.model.lora.r, tiny.model.lora.targets = 2, None
    tiny.data.train, tiny.data.max_length, tiny.data.cache = train, 512, str(folder / "cache")
    tiny.data.pack_length = None
    tiny.loop.max_iters, tiny.loop.accumulate, tiny.loop.batch_size, tiny.loop.log_every = 2, 1, 1, 1
    tiny.checkpoint.optimizer = False
    tiny.probe, tiny.work_dir = None, str(folder / "work")
    tiny.strategy = Choice(name="auto")  # one process; tests/engine runs several
    return tiny


def test_every_distinct_pipeline_trains(
    models: dict[str, Path], rows: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    pipelines = distinct()
    assert len(pipelines) > 150
    assert {pipeline.form for pipeline in pipelines} == {"LoRA", "full", "LoRA in 4 bits", "LoRA in 8 bits"}
    for number, (pipeline, spec) in enumerate(pipelines.items()):
        folder = tmp_path / str(number)
        work = train(stand_in(spec, pipeline.family, models, rows, folder), name="stand-in")
        assert read_run(work).status == "finished", pipeline
        scalars = [
            json.loads(line)
            for line in next(work.glob("*/vis_data/scalars.json")).read_text("utf-8").split("\n")
            if line
        ]
        assert len(scalars) == 2, pipeline
        assert (work / "adapter").is_dir() == (spec.model.lora is not None), pipeline
