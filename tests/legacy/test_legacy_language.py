"""The language of 0.1.x configs as people write it by hand: each config is read right, or fails in one sentence."""

from pathlib import Path

import pytest
from config_text import FALL, LOOP, WARM, edit

from xtuner.catalog.render import render
from xtuner.config.reader import read_text
from xtuner.config.spec import RunSpec, TemplateSpec
from xtuner.errors import UserError
from xtuner.legacy.run import to_run_spec

CHAT = render("internlm2_chat_1_8b_qlora_alpaca_e3")
FULL = render("internlm2_1_8b_full_custom_pretrain_e1")
LLAVA = render("llava_internlm2_chat_1_8b_qlora_clip_vit_large_p14_336_lora_e1_gpu8_finetune")
DPO = render("internlm2_chat_1_8b_dpo_full_varlenattn")
OWN_PATH = "pretrained_model_name_or_path = 'internlm/internlm2-chat-1_8b'"


def read(text: str, file: Path = Path("my.py")) -> RunSpec:
    return to_run_spec(read_text(text, file, "python"))


def at(spec: object, key: str) -> object:
    for part in key.split("."):
        spec = spec[int(part)] if isinstance(spec, list) else getattr(spec, part)
    return spec


def data(value: str, head: str = "") -> list[tuple[str, str]]:
    return [("import torch\n", f"{head}\nimport torch\n"), ("'tatsu-lab/alpaca'", value)]


@pytest.mark.parametrize(
    ("edits", "key", "value"),
    [
        (data("f'{pretrained_model_name_or_path}/a.json'"), "data.train.0.path", "internlm/internlm2-chat-1_8b/a.json"),
        (data("osp.join('d', 'a.json')", "import os.path as osp"), "data.train.0.path", "d/a.json"),
        (data("join('d', 'a.json')", "from os.path import join"), "data.train.0.path", "d/a.json"),
        (data("str(Path('d') / 'a.json')", "from pathlib import Path"), "data.train.0.path", "d/a.json"),
        (data("Path('d/e').parent / 'a.json'", "from pathlib import Path"), "data.train.0.path", "d/a.json"),
        (data("'%s/%d.json' % ('d', 3)"), "data.train.0.path", "d/3.json"),
        (data("'{}/{b}.json'.format('d', b=3)"), "data.train.0.path", "d/3.json"),
        (data("os.environ.get('NO_SUCH_NAME', 'a.json')", "import os"), "data.train.0.path", "a.json"),
        (data("r'C:\\data\\a.json'"), "data.train.0.path", "C:\\data\\a.json"),
        (
            data("'a.json'", "try:\n    import torch\nexcept ImportError:\n    torch = None"),
            "data.train.0.path",
            "a.json",
        ),
        (
            [("path=alpaca_en_path", "path='json', data_files=[f'd/{i}.json' for i in range(2)]")],
            "data.train.0.files",
            ["d/0.json", "d/1.json"],
        ),
        (
            [("path=alpaca_en_path", "path='json', data_files=dict(train=alpaca_en_path, test='b.json')")],
            "data.train.0.files",
            "tatsu-lab/alpaca",
        ),
        (
            [("max_length = 2048", "small = True\nif small:\n    max_length = 512\nelse:\n    max_length = 1")],
            "data.max_length",
            512,
        ),
        ([("max_length = 2048", "max_length: int = 1024")], "data.max_length", 1024),
        ([("max_length = 2048", "max_length, other = 1024, 3")], "data.max_length", 1024),
        ([("max_length = 2048", "max_length = other = 1024")], "data.max_length", 1024),
        ([("max_length = 2048", "max_length = 1024\nassert max_length > 3")], "data.max_length", 1024),
        ([("dataset=alpaca_en,", "dataset={**alpaca_en, 'max_length': 99},")], "data.max_length", 99),
        ([("dataset=alpaca_en,", "dataset=dict(alpaca_en, max_length=99),")], "data.max_length", 99),
        (
            [("dataset=alpaca_en,", "dataset=dict(type='ConcatDataset', datasets=[alpaca_en, alpaca_en]),")],
            "data.train.1.format",
            "alpaca",
        ),
        (
            [
                (
                    "dataset=alpaca_en,",
                    "dataset=dict(type='ConcatDataset', datasets_cfg=dict(a=alpaca_en), "
                    "datasets_kwargs=dict(max_length=7)),",
                )
            ],
            "data.max_length",
            7,
        ),
        ([("PROMPT_TEMPLATE.internlm2_chat", "PROMPT_TEMPLATE['qwen_chat']")], "data.template", "qwen_chat"),
        ([("PROMPT_TEMPLATE.internlm2_chat", "'xtuner.utils.PROMPT_TEMPLATE.gemma'")], "data.template", "gemma"),
        ([("dataset_map_fn=alpaca_map_fn", "dataset_map_fn=None")], "data.train.0.format", None),
        ([("dataset_map_fn=alpaca_map_fn", "dataset_map_fn='no_such.py:f'")], "data.train.0.format", "no_such.py:f"),
        ([("max_length=max_length", "max_length=max_length, max_dataset_length=None")], "data.train.0.limit", None),
        (
            [("'tatsu-lab/alpaca'", "'./d'"), ("path=alpaca_en_path", "path=alpaca_en_path, streaming=True")],
            "data.train.0.path",
            "./d",
        ),
        ([("load_from = None", "load_from = './a.pth'")], "model.weights", "./a.pth"),
        ([("resume = False", "resume = True")], "resume", "auto"),
        ([("evaluation_inputs=evaluation_inputs", "evaluation_inputs='hi'")], "probe.questions", ["hi"]),
        ([("SYSTEM = SYSTEM_TEMPLATE.alpaca", "SYSTEM = ''")], "probe.system", ""),
        ([(LOOP, "train_cfg = dict(type=TrainLoop, max_iters=500)")], "loop.max_iters", 500),
        ([(LOOP, "train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=1)")], "loop.epochs", 3),
        (
            [("by_epoch=False,\n        interval=save_steps", "by_epoch=True,\n        interval=1")],
            "checkpoint.by_epoch",
            True,
        ),
        (
            [(WARM, "by_epoch=False, begin=0, end=100"), (FALL, "by_epoch=False, begin=100")],
            "schedule.warmup_iters",
            100,
        ),
        (
            [("type=optim_type, lr=lr, betas=betas", "type='torch.optim.SGD', momentum=0.5, lr=lr")],
            "optim.betas",
            (0.5, 0.999),
        ),
        ([("'internlm/internlm2-chat-1_8b'", "'../models/link'")], "model.path", "../models/link"),
        ([("torch_dtype=torch.float16,", "torch_dtype='auto',")], "model.dtype", "auto"),
        ([("r=64,", "r=8,\n\n        # fewer\n")], "model.lora.r", 8),
        ([("\n", "\r\n")], "data.max_length", 2048),
    ],
)
def test_what_people_write(edits: list[tuple[str, str]], key: str, value: object) -> None:
    assert at(read(edit(CHAT, *edits)), key) == value


@pytest.mark.parametrize(
    ("edits", "said"),
    [
        ([("lr = 2e-4", "lr = -1")], r"my\.py:\d+: optim\.lr is -1"),
        (
            [("optim_type = AdamW", "def f(x):\n    return x\noptim_type = f(AdamW)")],
            r"my\.py:\d+: f\(\.\.\.\) cannot be called in a config\. Functions of a config are not run",
        ),
        (
            [("dataset_map_fn=alpaca_map_fn", "dataset_map_fn=lambda x: x")],
            r"my\.py:\d+: A lambda can only stand alone",
        ),
        (data("'a'", "raise ValueError(f'no {1 + 1}')"), r"my\.py:\d+: this config stops here: no 2"),
        (
            data("'a'", "import os\nos.environ['HF_ENDPOINT'] = 'x'"),
            r"HF_ENDPOINT is set inside .* HF_ENDPOINT=x xtuner",
        ),
        (data("'a'", "_base_ = './b.py'"), r"my\.py:\d+: _base_ is of another kind of config"),
        (data("'a'", "from transformers import *"), r"my\.py:\d+: from transformers import \* does not say"),
        (data("'a'", "assert False, 'no'"), r"my\.py:\d+: assert False, 'no' does not hold"),
        (data("'a'", "while True:\n    pass"), r"my\.py:\d+: The statement while is not part"),
        (data("'a' * 10 ** 9"), r"my\.py:\d+: This text or list is too large"),
        ([("dataset_map_fn=alpaca_map_fn", "dataset_map_fn=openai_map_fn")], r"my\.py:\d+: openai_map_fn has no value"),
        ([("start_factor=1e-5", "start_factor=0")], "start_factor must be above 0"),
        (
            [("PROMPT_TEMPLATE.internlm2_chat", "dict(INSTRUCTON='{input}')")],
            "no slot INSTRUCTON. Did you mean INSTRUCT",
        ),
        ([("PROMPT_TEMPLATE.internlm2_chat", "dict(SYSTEM='{system}')")], "INSTRUCTION does not hold {input}"),
        ([("pack_to_max_length=pack_to_max_length", "with_image_token=True")], "pictures need a LLaVADataset"),
        ([("shuffle_before_pack=True", "input_ids_with_output=False")], "nothing to learn"),
        ([("shuffle_before_pack=True", "do_dataset_tokenization=False")], "rows of tokens have no dataset_map_fn"),
        (
            [("evaluation_inputs=evaluation_inputs", "evaluation_inputs=['a'], evaluation_images='x.jpg'")],
            "reads text alone",
        ),
        ([("type=SupervisedFinetune", "type='xtuner.model.DPO'")], "dpo learns from pairs"),
        (
            [("load_from = None", "load_from = None\nstrategy = dict(type='FSDPStrategy')")],
            "FSDPStrategy is not a word",
        ),
    ],
)
def test_what_cannot_be_followed_is_one_sentence(edits: list[tuple[str, str]], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        read(edit(CHAT, *edits))
    assert caught.value.what.startswith("my.py:")
    assert len(str(caught.value)) < 400


def test_a_template_that_is_written_out() -> None:
    slots = "dict(SYSTEM='S {system}\\n', INSTRUCTION='U {input}\\nA ', SUFFIX='<e>', SUFFIX_AS_EOS=True, SEP='\\n')"
    spec = read(edit(CHAT, ("PROMPT_TEMPLATE.internlm2_chat", slots)))
    assert spec.data.template == TemplateSpec(
        system="S {system}\n", instruction="U {input}\nA ", suffix="<e>", suffix_as_eos=True, sep="\n"
    )
    assert spec.probe is not None
    assert spec.probe.template is None  # that of the data


def test_files_beside_the_config(tmp_path: Path) -> None:
    (tmp_path / "my_functions.py").write_text("LENGTH = 77\ndef to_turns(row):\n    return row\n", "utf-8")
    file = tmp_path / "config.py"
    head = "from my_functions import LENGTH, to_turns"
    edits = [("max_length = 2048", "max_length = LENGTH"), ("dataset_map_fn=alpaca_map_fn", "dataset_map_fn=to_turns")]
    plain = read(edit(CHAT, *data("'a.json'", head), *edits), file)
    assert plain.data.max_length == 77
    assert plain.data.train[0].format == f"{tmp_path / 'my_functions.py'}:to_turns"
    lazy = "from mmengine.config import read_base\nwith read_base():\n    from .my_functions import LENGTH, to_turns"
    assert read(edit(CHAT, *data("'a.json'", lazy), *edits), file) == plain
    named = [("max_length = 2048", "max_length = 77"), ("=alpaca_map_fn", "='my_functions.py:to_turns'")]
    assert read(edit(CHAT, *data("'a.json'"), *named), file) == plain


def test_hooks_and_back_ends_of_visualizer() -> None:
    hooks = "dict(type=DatasetInfoHook, tokenizer=tokenizer),"
    own = "dict(type='my_hooks.py:Mine', every=3), dict(type='xtuner.engine.hooks.HFCheckpointHook')"
    backends = "[dict(type=TensorboardVisBackend), dict(type='WandbVisBackend', init_kwargs=dict(project='p'))]"
    spec = read(
        edit(
            CHAT,
            ("import torch\n", "import torch\nfrom mmengine.visualization import TensorboardVisBackend, Visualizer\n"),
            (hooks, f"{hooks} {own},"),
            ("visualizer = None", f"visualizer = dict(type=Visualizer, vis_backends={backends})"),
        )
    )
    assert [(one.name, one.options) for one in spec.callbacks] == [
        ("my_hooks.py:Mine", {"every": 3}),
        ("hf_model", {}),
        ("tensorboard", {}),
        ("wandb", {"project": "p"}),
    ]


def test_a_dump_of_a_deepspeed_run() -> None:
    """What --deepspeed of 0.1.x put into the work dir, and people give to pth_to_hf."""
    text = edit(CHAT, ("optim_wrapper = dict(", "before = dict("))
    text += (
        "\noptim_wrapper = dict(type='mmengine._strategy.DeepSpeedOptimWrapper', optimizer=before['optimizer'])"
        "\nstrategy = dict(type='xtuner.engine.DeepSpeedStrategy', config=dict(zero_optimization=dict(stage=2)),"
        " gradient_accumulation_steps=16, train_micro_batch_size_per_gpu=1, gradient_clipping=1,"
        " exclude_frozen_parameters=True, sequence_parallel_size=1)\nrunner_type = 'FlexibleRunner'\n"
    )
    spec, before = read(text), read(CHAT)
    assert (spec.strategy.name, spec.strategy.options) == ("deepspeed", {"config": {"zero_optimization": {"stage": 2}}})
    assert (spec.loop, spec.optim, spec.model, spec.data) == (before.loop, before.optim, before.model, before.data)


def test_prepared_data() -> None:
    """Tokenised beforehand with the tool of 0.1.x, and read with load_from_disk."""
    start, end = FULL.index("train_dataset = dict("), FULL.index("train_dataloader = dict(")
    rows = (
        "train_dataset = dict(type=process_hf_dataset, dataset=dict(type='load_from_disk', dataset_path='./p'),"
        " do_dataset_tokenization=False, tokenizer=None, max_length=None, pack_to_max_length=False, split=None,"
        " input_ids_with_output=False, use_varlen_attn=True)\n"
    )
    spec = read(FULL[:start] + rows + FULL[end:])
    (source,) = spec.data.train
    assert (source.path, source.format, source.split, spec.data.pack) == ("./p", "tokens", None, False)


def test_pictures_of_the_course() -> None:
    spec = read(
        edit(
            LLAVA,
            ("'internlm/internlm2-chat-1_8b'", "'/root/models/internlm2-chat-1_8b'"),
            ("'openai/clip-vit-large-patch14-336'", "'/root/models/clip'"),
            ("batch_size = 16", "batch_size = 1"),
        )
    )
    assert spec.model.path == "/root/models/internlm2-chat-1_8b"
    assert spec.model.vision is not None
    assert (spec.model.vision.encoder, spec.model.vision.processor) == ("/root/models/clip", None)
    assert spec.loop.batch_size == 1
    with pytest.raises(UserError, match="both load_from and pretrained_pth"):
        read(edit(LLAVA, ("load_from = None", "load_from = './a.pth'")))
    options = "    loss_type=dpo_loss_type,\n    beta=loss_beta,\n    label_smoothing=label_smoothing,\n"
    with pytest.raises(UserError, match="sft learns from conversations"):
        read(edit(DPO, ("type=DPO", "type='SupervisedFinetune'"), (options, "")))
