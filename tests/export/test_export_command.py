"""`xtuner convert` as the course types it."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_tiny_internlm2

from xtuner.checkpoint.adapter import read_adapter
from xtuner.checkpoint.run_record import RunRecord, write_run
from xtuner.checkpoint.shards import ShardReader
from xtuner.checkpoint.state import save_state
from xtuner.cli.main import main
from xtuner.config.spec import ModelSpec
from xtuner.model.load import load_model
from xtuner.model.trainable import trainable_state

CONFIG = """\
model: {{path: {base}, lora: {{r: 4, alpha: 8}}, quant: {{bits: 4}}}}
data: {{train: x.json, template: internlm2_chat}}
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_internlm2(tmp_path_factory.mktemp("base"))


@pytest.fixture
def run(base: Path, tmp_path: Path) -> Path:
    """A work dir with a checkpoint and a config beside it, as `train` leaves them."""
    (tmp_path / "config.yaml").write_text(CONFIG.format(base=base))
    spec = ModelSpec.model_validate({"path": str(base), "lora": {"r": 4, "alpha": 8}})
    model = load_model(spec, device="cpu", dtype=torch.float32, train=False)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.fill_(0.01)
    folder = tmp_path / "run"
    folder.mkdir()
    save_state(folder / "iter_4.pth", {"state_dict": trainable_state(model)})
    return folder


def record(run: Path, base: Path) -> None:
    data: dict[str, Any] = {"train": ["x.json"], "template": "internlm2_chat"}
    spec = {"model": {"path": str(base), "lora": {"r": 4, "alpha": 8}}, "data": data}
    write_run(run, RunRecord(spec=spec, template="internlm2_chat", base={"path": str(base)}, status="finished"))


def test_the_course(run: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """pth_to_hf into a folder that is there, then merge; the mode in any case; a colon that `ls` left."""
    (tmp_path / "hf").mkdir()
    config = str(tmp_path / "config.yaml")
    assert (
        main(["convert", "PTH_TO_HF", config, f"{run}/iter_4.pth:", f"{tmp_path}/hf", "--max-shard-size", "2GB"]) == 0
    )
    assert capsys.readouterr().out.endswith("All done!\n")
    names = {path.name for path in (tmp_path / "hf").iterdir()}
    assert names >= {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert {tensor.dtype for tensor in read_adapter(tmp_path / "hf")[1].values()} == {torch.float16}
    merged = str(tmp_path / "merged")
    assert main(["convert", "merge", str(base), f"{tmp_path}/hf", merged, "--max-shard-size", "200KB"]) == 0
    out = capsys.readouterr().out
    assert f"Saving to {merged}...\n" in out
    assert "Checked against base + adapter" in out
    assert out.endswith("All done!\n")
    assert len(ShardReader(Path(merged)).files) > 1
    assert main(["convert", "split", merged, f"{tmp_path}/split"]) == 0
    assert len(ShardReader(tmp_path / "split").files) == 17


def test_options(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["convert", "pth_to_hf", f"{tmp_path}/config.yaml", f"{run}/iter_4.pth", f"{tmp_path}/hf"]
    assert main([*words, "--fp32", "--no-safe-serialization"]) == 0
    assert (tmp_path / "hf" / "adapter_model.bin").is_file()
    assert {tensor.dtype for tensor in read_adapter(tmp_path / "hf")[1].values()} == {torch.float32}
    assert main([*words, "--safe-serialization", "--cfg-options", "model.lora.alpha=32"]) == 0
    assert not (tmp_path / "hf" / "adapter_model.bin").exists()
    assert read_adapter(tmp_path / "hf")[0]["lora_alpha"] == 32


def test_a_run_folder_is_enough(run: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(run, base)
    assert main(["convert", "pth_to_hf", str(run), f"{tmp_path}/hf"]) == 0
    assert (tmp_path / "hf" / "xtuner_config.yaml").is_file()
    assert main(["convert", "merge", str(run), f"{tmp_path}/merged"]) == 0
    assert capsys.readouterr().out.count("All done!") == 2
    assert len(ShardReader(tmp_path / "merged").names()) == 17


def test_a_python_config_is_kept_as_it_was(run: Path, base: Path, tmp_path: Path) -> None:
    """The dumped form of 0.1.x: no imports, dotted strings."""
    text = f"""\
# a remark
model = dict(
    llm=dict(
        pretrained_model_name_or_path='{base}',
        trust_remote_code=True,
        type='transformers.AutoModelForCausalLM.from_pretrained'),
    lora=dict(bias='none', lora_alpha=8, lora_dropout=0.1, r=4, task_type='CAUSAL_LM', type='peft.LoraConfig'),
    type='xtuner.model.SupervisedFinetune')
tokenizer = dict(
    pretrained_model_name_or_path='{base}', type='transformers.AutoTokenizer.from_pretrained')
train_dataloader = dict(
    batch_size=1,
    dataset=dict(
        dataset=dict(data_files=dict(train='x.json'), path='json', type='datasets.load_dataset'),
        dataset_map_fn=None,
        max_length=64,
        pack_to_max_length=True,
        template_map_fn=dict(
            template='xtuner.utils.PROMPT_TEMPLATE.internlm2_chat',
            type='xtuner.dataset.map_fns.template_map_fn_factory'),
        tokenizer=dict(
            pretrained_model_name_or_path='{base}', type='transformers.AutoTokenizer.from_pretrained'),
        type='xtuner.dataset.process_hf_dataset'))
optim_wrapper = dict(
    accumulative_counts=1,
    optimizer=dict(betas=(0.9, 0.999), lr=0.0002, type='torch.optim.AdamW', weight_decay=0),
    type='mmengine.optim.AmpOptimWrapper')
param_scheduler = []
train_cfg = dict(max_epochs=1, type='xtuner.engine.runner.TrainLoop')
"""
    (tmp_path / "dumped.py").write_text(text)
    words = ["convert", "pth_to_hf", f"{tmp_path}/dumped.py", f"{run}/iter_4.pth", f"{tmp_path}/hf"]
    assert main(words) == 0
    assert (tmp_path / "hf" / "xtuner_config.py").read_text() == text
    assert read_adapter(tmp_path / "hf")[0]["base_model_name_or_path"] == str(base)


@pytest.mark.skipif(sys.platform == "win32", reason="no file size limit on this system")
def test_a_full_disk(run: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file size limit fails a write as a full disk does; what was there before stays."""
    import resource

    record(run, base)
    assert main(["convert", "merge", str(run), f"{tmp_path}/merged"]) == 0
    before = {file.name: file.read_bytes() for file in (tmp_path / "merged").iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        assert main(["convert", "merge", str(run), f"{tmp_path}/merged"]) == 1
        assert main(["convert", "merge", str(run), f"{tmp_path}/other", "--no-safe-serialization"]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert capsys.readouterr().err.count("The disk is full while writing") == 2
    assert {file.name: file.read_bytes() for file in (tmp_path / "merged").iterdir()} == before
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "usage: xtuner convert"),
        (["mergee", "a", "b", "c"], "invalid choice"),
        (["merge", "{base}", "a"], "is not the folder of a run"),
        (["merge", "a", "b", "c", "d"], "2 or 3 paths, not 4."),
        (["merge", "a", "b", "c", "--is-clip"], "--is-clip is for models that see pictures"),
        (["merge", "{base}", "{adapter}", "c", "--max-shard-size", "2XB"], "is not a size"),
        (["merge", "a", "b", "c", "--device", "tpu"], "invalid choice"),
        (["pth_to_hf", "a", "b", "c", "--save-format", "huggingface"], "--save-format huggingface is for"),
        (["pth_to_hf", "a", "b", "c", "--fp32", "--dtype", "float16"], "Both --fp32 and --dtype"),
        (["pth_to_hf", "a", "b"], "2 paths were given"),
        (["split", "a"], "required: DST"),
    ],
)
def test_wrong_words(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert main(["convert", *(word.format(base=base, adapter=tmp_path) for word in words)]) == 2
    assert message in capsys.readouterr().err
