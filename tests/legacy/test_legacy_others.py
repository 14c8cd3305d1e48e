"""What other people's configs say that the built-in ones do not: followed, or one sentence with file and line."""

from pathlib import Path

import pytest
from config_text import FALL, LOOP, WARM, edit

from xtuner.catalog.render import render
from xtuner.config.dump import dump_python
from xtuner.config.reader import read_text
from xtuner.config.spec import RunSpec, ScheduleStep
from xtuner.errors import UserError
from xtuner.legacy.run import to_run_spec

CHAT = render("internlm2_chat_7b_qlora_alpaca_e3")
KEEP = "max_keep_ckpts=save_total_limit"
ASK = "every_n_iters=evaluation_freq"
INFO = "dict(type=DatasetInfoHook, tokenizer=tokenizer)"
CLIP = "accumulative_counts=accumulative_counts"
COSINE = "type=CosineAnnealingLR,\n        eta_min=0.0,"
Edits = list[tuple[str, str]]


def read(*edits: tuple[str, str], said: list[str] | None = None) -> RunSpec:
    """Translate the edited config; a dump of it must say the same."""
    told = [] if said is None else said
    config = read_text(edit(CHAT, *edits), Path("my.py"), "python")
    spec = to_run_spec(config, told.append)
    again = to_run_spec(read_text(dump_python(config.values), Path("my.py"), "python"), lambda sentence: None)
    assert again == spec
    assert said is not None or not told
    return spec


@pytest.mark.parametrize(
    ("words", "best", "rule"),
    [
        ("save_best='auto'", "auto", None),
        ("save_best='loss', rule='less'", "val_loss", "less"),
        ("save_best=['val/loss'], rule=['less']", "val_loss", "less"),
        ("save_best='mmlu', rule='greater'", "mmlu", "greater"),
        ("save_best=None, rule='greater', out_dir=None", None, None),
    ],
)
def test_the_best_state(words: str, best: str | None, rule: str | None) -> None:
    checkpoint = read((KEEP, f"{KEEP}, {words}, published_keys=['meta']")).checkpoint
    assert (checkpoint.best, checkpoint.best_rule, checkpoint.keep) == (best, rule, 2)


def test_hooks_under_any_name_and_in_any_place() -> None:
    said: list[str] = []
    spec = read(
        ("timer=dict(", "mine=dict(type='hooks.py:Mine', tokenizer=tokenizer), timer=dict("),
        ("logger=dict(", "profiler=dict(type='ProfilerHook'), logger=dict("),
        (INFO, f"dict(type=CheckpointHook, interval=7, by_epoch=False), {INFO}"),
        said=said,
    )
    assert spec.checkpoint.every == 7
    (own,) = spec.callbacks
    assert own.name == "hooks.py:Mine"
    assert own.options["tokenizer"]["type"] == "transformers.AutoTokenizer.from_pretrained"
    assert len(said) == 1
    assert "ProfilerHook has no effect" in said[0]
    assert said[0].startswith("my.py:")
    none = read(("default_hooks = dict(", "default_hooks = dict(checkpoint=None)\nbefore = dict("))
    assert (none.checkpoint.every, none.checkpoint.last) == (None, False)


def test_how_answers_are_drawn() -> None:
    said: list[str] = []
    words = "do_sample=True, temperature=0.8, top_k=5, top_p=0.9, repetition_penalty=1.1, max_new_tokens=9"
    probe = read((ASK, f"generation_kwargs=dict({words}, eos_token_id=[2], num_beams=4), {ASK}"), said=said).probe
    assert probe is not None
    drawn = (probe.temperature, probe.top_k, probe.top_p, probe.repetition_penalty, probe.max_new_tokens)
    assert drawn == (0.8, 5, 0.9, 1.1, 9)
    (sentence,) = said
    assert "eos_token_id=[2], num_beams=4 have no effect on the answers" in sentence
    greedy = read((ASK, f"generation_kwargs=dict(do_sample=False, num_beams=1), {ASK}")).probe
    assert greedy is not None
    assert greedy.temperature == 0
    never = read(("evaluation_freq = 500", "evaluation_freq = 0")).probe
    assert never is not None
    assert never.every is None


def test_several_hooks_that_ask() -> None:
    more = (
        "dict(type=EvaluateChatHook, tokenizer=tokenizer, every_n_iters=evaluation_freq, evaluation_inputs=['x'], {})"
    )
    same = more.format("system=SYSTEM, prompt_template=prompt_template")
    probe = read((INFO, f"{same}, {INFO}")).probe
    assert probe is not None
    assert probe.questions[0] == "x"
    assert len(probe.questions) == 3
    with pytest.raises(UserError, match=r"my\.py:\d+: a second EvaluateChatHook asks with system="):
        read((INFO, f"{more.format('prompt_template=prompt_template')}, {INFO}"))


def step(**values: object) -> ScheduleStep:
    return ScheduleStep.model_validate(values)


@pytest.mark.parametrize(
    ("edits", "chain"),
    [
        (
            [(WARM, "by_epoch=False, begin=0, end=500"), ("begin=warmup_ratio * max_epochs", "begin=1")],
            [
                step(name="linear", end=500, start_factor=1e-5),
                step(name="cosine", unit="epochs", begin=1, end=3),
            ],
        ),
        (
            [(FALL, "by_epoch=True, begin=0.09, T_max=3, convert_to_iter_based=True")],
            [
                step(name="linear", unit="epochs", end=0.09, start_factor=1e-5),
                step(name="cosine", unit="epochs", begin=0.09, period=3),
            ],
        ),
        (
            [
                ("convert_to_iter_based=True", "convert_to_iter_based=False"),
                ("warmup_ratio = 0.03", "warmup_ratio = 1 / 3"),
            ],
            [
                step(name="linear", unit="epochs", end=1, start_factor=1e-5, each_epoch=True),
                step(name="cosine", unit="epochs", begin=1, end=3, each_epoch=True),
            ],
        ),
        (
            [(LOOP, "train_cfg = dict(type='IterBasedTrainLoop', max_iters=100, val_interval=50)")],
            [
                step(name="linear", unit="epochs", end=0.09, start_factor=1e-5),
                step(name="cosine", unit="epochs", begin=0.09, end=3),
            ],
        ),
        (
            [(LOOP, "train_cfg = dict(type=TrainLoop, max_epochs=1)"), ("eta_min=0.0", "eta_min_ratio=0.1")],
            [
                step(name="linear", unit="epochs", end=0.09, start_factor=1e-5),
                step(name="cosine", unit="epochs", begin=0.09, end=3, min_lr=2e-5),
            ],
        ),
    ],
)
def test_schedules_that_are_no_warm_up_and_fall_to_the_end(edits: Edits, chain: list[ScheduleStep]) -> None:
    schedule = read(*edits).schedule
    assert [one.model_dump() for one in schedule.chain] == [
        {**one.model_dump(), "min_lr": pytest.approx(one.min_lr)} for one in chain
    ]


@pytest.mark.parametrize(
    "edits",
    [
        [(FALL, f"{FALL}, T_max=max_epochs - warmup_ratio * max_epochs")],
        [(FALL, "by_epoch=True, begin=warmup_ratio * max_epochs, convert_to_iter_based=True")],
    ],
)
def test_schedules_that_say_the_usual_in_other_words(edits: Edits) -> None:
    assert read(*edits).schedule == read().schedule


def test_a_fall_to_nothing() -> None:
    schedule = read((COSINE, "type=LinearLR, start_factor=1, end_factor=0,")).schedule
    assert (schedule.name, schedule.min_lr, schedule.chain) == ("linear", 0, [])
    early = read((COSINE, "type=LinearLR, start_factor=1, end_factor=0,"), ("end=max_epochs", "end=2")).schedule
    assert [one.end_factor for one in early.chain] == [1, 0]


@pytest.mark.parametrize(
    "edits",
    [
        [(CLIP, f"paramwise_cfg=dict(bias_decay_mult=0., norm_decay_mult=0.), constructor=None, {CLIP}")],
        [("optim_type = AdamW", "optim_type = 'torch.optim.Adam'")],
        [("optim_type = AdamW", "from deepspeed.ops.adam import DeepSpeedCPUAdam\noptim_type = DeepSpeedCPUAdam")],
        [("torch_dtype=torch.float16", "torch_dtype=torch.float16, use_flash_attention_2=True")],
        [("torch_dtype=torch.float16", "torch_dtype=torch.float16, attn_implementation='flash_attention_3'")],
        [("load_in_8bit=False", "load_in_8bit=False, llm_int8_skip_modules=['lm_head']")],
        [
            ("AutoModelForCausalLM.from_pretrained", "Fast.from_pretrained"),
            ("import torch\n", "import torch\nfrom xtuner.model.transformers_models.x import XForCausalLM as Fast\n"),
        ],
        [("visualizer = None", "visualizer = None\nval_cfg = val_evaluator = val_dataloader = None")],
    ],
)
def test_what_changes_nothing(edits: Edits) -> None:
    assert read(*edits) == read()


@pytest.mark.parametrize(
    ("words", "template"),
    [
        ("instruction=prompt_template.INSTRUCTION_START", None),  # that of the data
        ("instruction='xtuner.utils.PROMPT_TEMPLATE.qwen_chat.INSTRUCTION_START'", "qwen_chat"),
        ("instruction='Q: {input}\\nA: '", "Q: {input}\nA: "),
    ],
)
def test_questions_of_the_first_versions(words: str, template: str | None) -> None:
    probe = read(("system=SYSTEM,\n        prompt_template=prompt_template", words)).probe
    assert probe is not None
    assert getattr(probe.template, "instruction", probe.template) == template


def test_libraries_are_not_patched() -> None:
    patch = """from transformers.cache_utils import DynamicCache
if not hasattr(DynamicCache, 'get_max_length'):
    DynamicCache.get_max_length = DynamicCache.get_max_cache_shape
def forward(self, x):
    return x
DynamicCache.forward = forward
import torch
"""
    said: list[str] = []
    assert read(("import torch\n", patch), said=said) == read()
    (sentence,) = said
    assert sentence.startswith("my.py:")
    assert sentence.endswith("DynamicCache.forward is not changed: no library is patched.")


def test_backends_that_are_not_there_are_told() -> None:
    said: list[str] = []
    backend = "dict(type='mmengine.visualization.MLflowVisBackend', exp_name='x')"
    spec = read(("visualizer = None", f"visualizer = dict(type='Visualizer', vis_backends=[{backend}])"), said=said)
    assert not spec.callbacks
    (sentence,) = said
    assert "nothing is sent to MLflowVisBackend" in sentence


@pytest.mark.parametrize(
    ("edits", "told"),
    [
        ([(KEEP, f"{KEEP}, save_best=['a', 'b']")], "save_best names several"),
        ([(KEEP, f"{KEEP}, save_best='a', rule='more'")], "checkpoint.best_rule is 'more'"),
        ([(KEEP, f"{KEEP}, out_dir='/elsewhere'")], "Checkpoints stand in the work dir"),
        ([(KEEP, f"{KEEP}, save_begin=100")], "save_begin=100 cannot be followed"),
        ([("lr = 2e-4", "lr = 'high'")], "lr is 'high'; it must be a number"),
        ([("default_hooks = dict(", "default_hooks = 'checkpoint'\nbefore = dict(")], "it must be a dict"),
        ([(COSINE, "type='ConstantLR', factor=0,")], "factor must be above 0. Write factor=1e-5"),
        ([(COSINE, "type=LinearLR, end_factor=-1,")], "end_factor must not be below 0"),
        (
            [("timer=dict(", "stop=dict(type='EarlyStoppingHook', monitor='loss'), timer=dict(")],
            "a run goes to its end",
        ),
        (
            [(CLIP, f"paramwise_cfg=dict(custom_keys={{'lora': dict(lr_mult=2)}}), {CLIP}")],
            "weights have one learning rate",
        ),
        ([(CLIP, f"constructor='Layerwise', {CLIP}")], "constructor='Layerwise' cannot be followed"),
        ([("optim_type = AdamW", "optim_type = 'lion_pytorch.Lion'")], "lion_pytorch.Lion is not a word"),
        (
            [("optim_type = AdamW", "optim_type = 'Adam'"), ("weight_decay = 0", "weight_decay = 0.1")],
            "Adam adds the decay to the gradient",
        ),
        ([("type=SupervisedFinetune", "type='AutoModelForCausalLM.from_pretrained'")], "the model is not wrapped"),
        ([("PROMPT_TEMPLATE.internlm2_chat", "PROMPT_TEMPLATE.of_my_fork")], "One of your own is written out"),
        (
            [("visualizer = None", "val_dataloader = dict(dataset=alpaca_en)\nval_evaluator = dict(type='my.Metric')")],
            "the only test that is known is MMLUMetric",
        ),
    ],
)
def test_what_cannot_be_followed_says_what_to_do(edits: Edits, told: str) -> None:
    with pytest.raises(UserError) as caught:
        read(*edits)
    assert told in str(caught.value)
    assert caught.value.what.startswith("my.py:")
