"""What is advised makes a run fit: every piece of advice is typed, and planned again."""

import re

import pytest

from xtuner.cli.main import main
from xtuner.config.check import to_spec
from xtuner.engine.memory import advise
from xtuner.engine.plan.advice import change, find_change, list_changes
from xtuner.engine.plan.card import find_card, find_cards
from xtuner.engine.plan.plan import make_plan
from xtuner.engine.plan.shape import load_shape
from xtuner.engine.plan.work import Work, row_of

LLAMA2, LLAMA3 = "meta-llama/Llama-2-7b-hf", "meta-llama/Meta-Llama-3-8B"
LLAMA70, MIXTRAL, MINICPM = "meta-llama/Meta-Llama-3-70B", "mistralai/Mixtral-8x7B-v0.1", "openbmb/MiniCPM-2B-sft-bf16"
ADVICE = re.compile(r"It fits(?: on (\d+) such cards \(NPROC_PER_NODE=\d+\))? with: (.*) \(([\d.]+) GiB\)")

# model, card, settings: none of them fits
CASES = [
    (LLAMA70, "80GB", ""),
    (LLAMA70, "A100-40G", ""),
    (LLAMA70, "24GB", "--bits 4"),
    (LLAMA70, "80GB", "model.lora=null"),
    (LLAMA70, "8xA100-80G", "model.lora=null"),
    (LLAMA3, "24GB", "model.lora=null"),
    (LLAMA3, "24GB", "model.lora=null model.dtype=bfloat16 optim.name=sgd loop.accumulate=1"),
    (LLAMA3, "80GB", "model.lora=null loop.batch_size=4 loop.accumulate=1"),
    (LLAMA3, "V100", "model.lora=null"),
    (LLAMA3, "8GB", "model.lora=null loop.accumulate=4"),
    (LLAMA3, "8GB", "--bits 8"),
    (LLAMA3, "16GB", "data.max_length=8192 loop.batch_size=8 model.recompute=none"),
    (LLAMA3, "24GB", "data.max_length=100000 data.pack_length=200000 --bits 4"),
    (LLAMA3, "4xT4", "model.lora=null"),
    (LLAMA3, "4x24GB", ""),
    (LLAMA3, "4x24GB", "model.lora=null --strategy fsdp"),
    (LLAMA3, "24GB", "model.lora=null --deepspeed deepspeed_zero3"),
    (LLAMA2, "6GB", "--bits 4 data.max_length=32768"),
    (LLAMA2, "6GB", "model.lora.r=512"),
    (LLAMA2, "24GB", "model.attention=eager data.max_length=32768"),
    (MIXTRAL, "A100-40G", ""),
    (MINICPM, "4GB", ""),
]


@pytest.mark.parametrize(("model", "card", "settings"), CASES)
def test_what_is_typed_as_advised_fits(model, card, settings, tmp_path, monkeypatch, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "Hello", "output": "Hello to you"}\n', "utf-8")
    words = ["plan", "--model", model, "--data", str(rows), "--gpu", card, *settings.split()]
    before = main(words)
    said = capsys.readouterr().out
    advice = ADVICE.search(said)
    if advice is None:  # then it fits, or nothing helps, which must be said
        assert before == 0 or "No setting makes it fit: use a smaller model" in said
        return
    assert before == 1
    if advice[1]:
        monkeypatch.setenv("NPROC_PER_NODE", advice[1])
    assert main([*words, *advice[2].split()]) == 0, advice[0]
    peak = re.search(r"peak +([\d.]+)", capsys.readouterr().out)
    assert peak is not None
    assert peak[1] == advice[3]


def test_most_of_these_are_helped(tmp_path, capsys):
    """The test above would hold for advice that is never given."""
    helped = 0
    for model, card, settings in CASES:
        rows = tmp_path / "rows.jsonl"
        rows.write_text('{"instruction": "Hello", "output": "Hello to you"}\n', "utf-8")
        main(["plan", "--model", model, "--data", str(rows), "--gpu", card, *settings.split()])
        helped += ADVICE.search(capsys.readouterr().out) is not None
    assert helped >= 17


def spec_of(path=LLAMA3, **parts):
    model = {"path": path, "lora": {}, **parts.pop("model", {})}
    return to_spec({"model": model, "data": {"train": "rows.json", "template": "default"}, **parts})


def work_of(spec):
    return Work(*row_of(spec), iterations=100)


def test_settings_that_do_not_go_together_are_not_advised():
    """FSDP knows torch's optimisers alone, and one process alone can step in the backward pass."""
    shape, cards = load_shape(LLAMA3), find_cards("4x80GB")
    spec = spec_of(model={"lora": None})
    assert change(spec, shape, cards, ["strategy=fsdp", "optim.name=adamw_bf16"]) is None
    assert change(spec, shape, cards, ["optim.in_backward=true", "optim.max_norm=none"]) is None
    words, _ = find_change(spec, shape, cards, work_of(spec))
    assert words == ["strategy=fsdp"]
    said = [word for group in list_changes(spec, is_cpu=False, cards=4) for word in group]
    assert not any("in_backward" in word for word in said)


def test_what_float16_makes_idle_or_impossible_is_not_advised():
    """There weights are float32 whatever is asked for, and gradients are all looked at before a step."""
    shape, card = load_shape("internlm/internlm2-1_8b"), find_card("V100")
    spec = spec_of("internlm/internlm2-1_8b", model={"lora": None}, loop={"accumulate": 1})
    words, _ = find_change(spec, shape, card, Work(8192, 8192, 100))
    assert "optim.name=adamw_bf16" in words
    assert not any(word.startswith(("model.dtype", "optim.in_backward")) for word in words)
    assert change(spec, shape, card, ["optim.in_backward=true", "optim.max_norm=none"]) is None


def test_all_weights_that_cannot_be_trained_become_an_adapter():
    """With several iterations a step nothing smaller fits on 8 GB, so what it saves is taken together."""
    spec, shape, card = spec_of(model={"lora": None}, loop={"accumulate": 4}), load_shape(LLAMA3), find_card("8GB")
    words, memory = find_change(spec, shape, card, work_of(spec))
    assert "model.quant.bits=4" in words
    assert any(word.startswith("model.lora.r=") for word in words)
    assert memory.least < card.memory


def test_more_cards_are_advised_where_no_setting_helps():
    """Experts are not quantised, so 87 GiB of Mixtral stay 87."""
    spec, shape = spec_of(MIXTRAL), load_shape(MIXTRAL)
    plan = make_plan(spec, shape, find_card("A100-40G"), work_of(spec))
    assert plan.change is None
    count, words, memory = plan.more_cards
    assert "strategy=fsdp" in words
    assert memory.need < plan.card.memory
    assert count == 4
    assert make_plan(spec, shape, find_card("4GB"), work_of(spec)).more_cards is None


def test_advice_after_memory_ran_out_is_that_of_the_plan():
    """Where the plan has said before that it does not fit, a change that only saves a good part would not suffice."""
    spec = spec_of(LLAMA2, model={"quant": {"bits": 4}}, loop={"batch_size": 8})
    plan = make_plan(spec, load_shape(LLAMA2), find_card("6GB"), work_of(spec))
    words, _ = plan.change
    assert f"It fits with: {' '.join(words)}" in advise(spec, plan)
    assert len(words) > 2


def test_advice_after_memory_ran_out_goes_with_the_strategy():
    spec = spec_of(strategy="fsdp", model={"recompute": "layers"}, loop={"batch_size": 8})
    plan = make_plan(spec, load_shape(LLAMA3), find_cards("4x24GB"), work_of(spec))
    said = advise(spec, plan)
    assert "paged" not in said
    assert "loop.batch_size=1" in said
