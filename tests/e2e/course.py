"""The course's folder and the course's edits, made as a person with an editor makes them."""

import json
import subprocess
import sys
from pathlib import Path

CONFIG = "internlm2_chat_1_8b_qlora_alpaca_e3"
BUILT_IN = Path(__file__).resolve().parents[2] / "xtuner" / "assets" / "tiny"


def make_folder(folder: Path, num_repeats: int) -> None:
    """Lay out what the course has people prepare: the model behind a symlink, and two sentences repeated."""
    (folder / "Shanghai_AI_Laboratory").mkdir(parents=True)
    (folder / "Shanghai_AI_Laboratory" / "internlm2-chat-1_8b").symlink_to(BUILT_IN)
    (folder / "datas").mkdir()
    turns = [
        {
            "conversation": [
                {"input": "请介绍一下你自己", "output": "我是伍鲜同志的小助手，内在是上海AI实验室的书生·浦语大模型哦"}
            ]
        },
        {
            "conversation": [
                {"input": "你在实战营做什么", "output": "我在这里帮助伍鲜同志完成XTuner微调个人小助手的任务"}
            ]
        },
    ]
    rows = turns * (num_repeats + 1)
    (folder / "datas" / "assistant.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1), "utf-8")


def edit(config: Path, **numbers: str) -> None:
    """Change the lines the course changes; a line that is not there is a failure, as it would be for the reader.

    `numbers` are further `name = value` lines of PART 1.
    """
    text = config.read_text("utf-8")

    def replace(old: str, new: str) -> None:
        nonlocal text
        assert old in text, f"the copied config has no line {old!r}"
        text = text.replace(old, new)

    def assign(name: str, value: str) -> None:
        lines = text.splitlines()
        found = [line for line in lines if line.startswith(f"{name} = ")]
        assert len(found) == 1, f"the copied config has {len(found)} lines that set {name}"
        replace(found[0], f"{name} = {value}")

    assign("pretrained_model_name_or_path", "'Shanghai_AI_Laboratory/internlm2-chat-1_8b'")
    assign("alpaca_en_path", "'datas/assistant.json'")
    start = text.index("evaluation_inputs = [")
    text = (
        text[:start]
        + "evaluation_inputs = ['请介绍一下你自己', 'Please introduce yourself']"
        + text[text.index("]", start) + 1 :]
    )
    replace(
        "dataset=dict(type=load_dataset, path=alpaca_en_path)",
        "dataset=dict(type=load_dataset, path='json', data_files=dict(train=alpaca_en_path))",
    )
    replace("dataset_map_fn=alpaca_map_fn", "dataset_map_fn=None")
    for name, value in numbers.items():
        assign(name, value)
    config.write_text(text, "utf-8")


def xtuner(folder: Path, *words: str, stdin: str = "", status: int = 0) -> str:
    """Type `xtuner words...` in `folder`; return what the screen shows, after checking the exit status."""
    done = subprocess.run(
        [sys.executable, "-m", "xtuner", *words],
        cwd=folder,
        input=stdin,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    screen = done.stdout + done.stderr
    assert done.returncode == status, f"xtuner {' '.join(words)} -> {done.returncode}\n{screen}"
    assert "Traceback" not in screen
    return screen
