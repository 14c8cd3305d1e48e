"""The course's evening, typed as the course types it (see docs/en/course.md), on the built-in model."""

import json
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from course import CONFIG, edit, make_folder, xtuner

from xtuner.checkpoint.run_record import read_run
from xtuner.config.spec import RunSpec
from xtuner.model.load import load_model

BASE = "./Shanghai_AI_Laboratory/internlm2-chat-1_8b"
ANSWER = "伍鲜同志"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the course has been followed up to and including the training."""
    folder = tmp_path_factory.mktemp("course")
    make_folder(folder, num_repeats=200)
    assert "0." in xtuner(folder, "version")
    assert "train" in xtuner(folder, "help")
    listed = xtuner(folder, "list-cfg", "-p", "internlm2_1_8b")
    assert "PATTERN: internlm2_1_8b" in listed
    assert "internlm2_1_8b_full_custom_pretrain_e1" in listed
    assert "Copy to" in xtuner(folder, "copy-cfg", CONFIG, ".")
    config = folder / f"{CONFIG}_copy.py"
    # Fewer rows than the course's 7,502, so smaller steps; as many steps, and the course's own learning rate.
    edit(config, accumulative_counts="1", batch_size="1", max_length="512", max_epochs="1", save_steps="10")
    screen = xtuner(folder, "train", f"./{CONFIG}_copy.py")
    assert "400 of 402 rows" in screen, "the repeated rows are counted before training"
    return folder


def newest_pth(folder: Path) -> str:
    r"""Return what `ls -t ./work_dirs/X/*.pth | head -n 1` prints."""
    files = (folder / "work_dirs" / f"{CONFIG}_copy").glob("*.pth")
    newest = max(files, key=lambda file: file.stat().st_mtime_ns)
    return f"./{newest.relative_to(folder)}"


def test_work_dir_has_the_names_scripts_look_for(folder: Path) -> None:
    work_dir = folder / "work_dirs" / f"{CONFIG}_copy"
    pth = folder / newest_pth(folder)
    last = int(pth.stem.removeprefix("iter_"))
    assert (work_dir / f"{CONFIG}_copy.py").is_file()
    assert (work_dir / "last_checkpoint").read_text() == str(pth.resolve())
    (stamp,) = [path for path in work_dir.iterdir() if path.is_dir() and path.name[:2] == "20"]
    assert (stamp / f"{stamp.name}.log").is_file()
    vis = stamp / "vis_data"
    assert {f"{stamp.name}.json", "scalars.json", "config.py", f"eval_outputs_iter_{last - 1}.txt"} <= {
        path.name for path in vis.iterdir()
    }
    assert (work_dir / "run.json").is_file()
    assert (work_dir / "adapter" / "adapter_config.json").is_file()
    losses = [json.loads(line)["loss"] for line in (vis / "scalars.json").read_text().splitlines()]
    assert losses[-1] < losses[0] / 4
    assert len(list(work_dir.glob("iter_*.pth"))) == 2, "save_total_limit = 2"


def test_convert_merge_and_chat(folder: Path) -> None:
    xtuner(folder, "convert", "pth_to_hf", f"./{CONFIG}_copy.py", newest_pth(folder), "./hf")
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors", "xtuner_config.py"} <= {
        path.name for path in (folder / "hf").iterdir()
    }
    merged = xtuner(folder, "convert", "merge", BASE, "./hf", "./merged", "--max-shard-size", "2GB")
    assert "All done!" in merged
    words = ("chat", "./merged", "--prompt-template", "internlm2_chat")
    said = xtuner(folder, *words, stdin="请介绍一下你自己\n\nRESET\n\nEXIT\n\n")
    assert ANSWER in said
    assert "Log: Exit!" in said
    assert ANSWER not in xtuner(
        folder, "chat", BASE, "--prompt-template", "internlm2_chat", "--prompt", "请介绍一下你自己"
    )
    assert ANSWER in xtuner(folder, "chat", BASE, "--adapter", "./hf", "--prompt", "请介绍一下你自己")


def test_the_run_folder_is_enough(folder: Path) -> None:
    run = f"work_dirs/{CONFIG}_copy"
    assert ANSWER in xtuner(folder, "chat", run, "--prompt", "请介绍一下你自己")
    xtuner(folder, "convert", "merge", run, "./merged_from_run")
    assert ANSWER in xtuner(folder, "chat", "./merged_from_run", "--prompt", "请介绍一下你自己")


def test_dumped_config_converts_too(folder: Path) -> None:
    dumped = f"work_dirs/{CONFIG}_copy/{CONFIG}_copy.py"
    xtuner(folder, "convert", "pth_to_hf", dumped, newest_pth(folder), "./hf_from_dump")
    assert (folder / "hf_from_dump" / "adapter_model.safetensors").is_file()


def test_the_training_held_nf4_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Load the model as the run did, from the spec that the run wrote down: QLoRA is 4 bits, not a word."""
    monkeypatch.chdir(folder)
    record = read_run(Path("work_dirs") / f"{CONFIG}_copy")
    spec = RunSpec.model_validate(record.spec).model
    model = load_model(spec, device="cpu", dtype=torch.float32, train=True)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit)}
    config = model.config  # type: ignore[union-attr]
    assert len(layers) == 5 * config.num_hidden_layers  # type: ignore[union-attr]
    for layer in layers.values():
        assert layer.weight.quant_state.quant_type == "nf4"
        assert layer.weight.dtype == torch.uint8
        assert layer.weight.numel() * 2 == layer.in_features * layer.out_features, "two weights in a byte"
        assert not layer.weight.requires_grad
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained
    assert all(".lora_" in name for name in trained)
