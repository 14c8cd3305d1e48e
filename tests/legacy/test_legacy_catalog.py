"""Every built-in config translates to a `RunSpec`; what no engine runs yet says so, in a sentence, when it is run."""

from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from xtuner.catalog.names import run_names
from xtuner.catalog.render import render
from xtuner.cli.main import main
from xtuner.config import later
from xtuner.config.check import to_spec
from xtuner.config.dump import dump_python, dump_yaml
from xtuner.config.later import check_runnable, missing_parts
from xtuner.config.reader import read_text
from xtuner.config.spec import RunSpec
from xtuner.conversation.builtin import TEMPLATES
from xtuner.dataset import FORMATS, PAIR_FORMATS
from xtuner.engine import CALLBACKS
from xtuner.errors import UserError
from xtuner.legacy.run import to_run_spec
from xtuner.objective import OBJECTIVES

# what is read but not run yet, and how many configs of 0.1.23 are for that
WAITING = {
    "model.vision: a model that sees pictures": 54,
    "objective: dpo (preference training)": 7,
    "objective: orpo (preference training)": 5,
    "objective: reward (reward models)": 5,
    "callbacks: mmlu (the MMLU test)": 1,
}
# formats of rows with places in pictures, for models that see
PLACES = {"refcoco", "inv_refcoco"}


@cache
def every_spec() -> dict[str, RunSpec]:
    return {name: to_run_spec(read_text(render(name), Path(f"{name}.py"), "python")) for name in run_names()}


def test_every_name_translates() -> None:
    specs = every_spec()
    assert len(specs) == len(run_names()) == 576
    for spec in specs.values():
        assert spec.data.template is None or spec.data.template in TEMPLATES
        assert {source.format for source in spec.data.train} <= {None, *FORMATS, *PAIR_FORMATS, *PLACES}


def test_dumps_and_short_forms_say_the_same() -> None:
    for name, spec in list(every_spec().items())[::5]:
        config = read_text(render(name), Path(f"{name}.py"), "python")
        assert to_run_spec(read_text(dump_python(config.values), Path("dump.py"), "python")) == spec, name
        assert to_spec(read_text(dump_yaml(spec), Path("short.yaml"), "yaml").values) == spec, name


def test_what_cannot_be_run_yet_says_so() -> None:
    found: Counter[str] = Counter()
    for spec in every_spec().values():
        found.update(f"{setting}: {what}" for setting, what in missing_parts(spec))
        if next(missing_parts(spec), None) is None:
            check_runnable(spec)
        else:
            with pytest.raises(UserError, match="can be read from a config, but this version cannot run it yet"):
                check_runnable(spec)
    assert dict(found) == WAITING


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("internlm2_chat_1_8b_dpo_full", "objective: dpo (preference training) can be read"),
        ("llava_internlm2_chat_1_8b_clip_vit_large_p14_336_e1_gpu8_pretrain", "model.vision: a model that sees"),
    ],
)
def test_the_command_says_it_in_one_sentence(name: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", name]) == 1
    shown = capsys.readouterr()
    assert said in shown.err
    assert len(shown.err.splitlines()) == 2


def test_the_rows_of_what_is_missing_are_missing() -> None:
    for rows, table in (
        (later.OBJECTIVES, OBJECTIVES),
        (later.CALLBACKS, CALLBACKS),
    ):
        assert not set(rows) & set(table), "a part has landed: take its row out of xtuner/config/later.py"


def test_pictures() -> None:
    specs = every_spec()
    pretrain = specs["llava_internlm2_chat_1_8b_clip_vit_large_p14_336_e1_gpu8_pretrain"]
    vision = pretrain.model.vision
    assert vision is not None
    assert (vision.encoder, vision.processor) == ("openai/clip-vit-large-patch14-336", None)
    assert (vision.select_layer, vision.projector_depth, vision.freeze, vision.lora) == (-2, 2, True, None)
    assert (pretrain.model.freeze, pretrain.model.lora, pretrain.model.weights) == (True, None, None)
    assert pretrain.data.train[0].image_folder == "./data/llava_data/LLaVA-Pretrain/images"
    assert (pretrain.data.train[0].format, pretrain.data.pack) == ("llava", False)
    assert pretrain.probe is not None
    assert pretrain.probe.images == ["https://llava-vl.github.io/static/images/view.jpg"]
    tuned = specs["llava_internlm2_chat_1_8b_qlora_clip_vit_large_p14_336_lora_e1_gpu8_finetune"]
    assert tuned.model.lora is not None
    assert (tuned.model.lora.r, tuned.model.lora.alpha) == (512, 256)
    assert tuned.model.vision is not None
    assert tuned.model.vision.lora is not None
    assert tuned.model.vision.lora.r == 64
    assert tuned.model.vision.pad_to_square
    assert tuned.model.weights is not None
    intern = specs["internvl_v2_internlm2_2b_qlora_finetune"].model
    assert intern.quant is not None
    assert intern.vision is not None
    assert (intern.path, intern.vision.encoder, intern.vision.quant) == ("OpenGVLab/InternVL2-2B", None, None)
    places = specs["llava_vicuna_7b_v15_qlora_clip_vit_large_p14_336_lora_e1_gpu8_finetune_refcoco"]
    assert {source.format for source in places.data.train} == {"llava", "refcoco", "inv_refcoco"}


def test_preferences() -> None:
    specs = every_spec()
    dpo = specs["internlm2_chat_1_8b_dpo_full_varlenattn"]
    assert dpo.objective.name == "dpo"
    assert dpo.objective.options == {"beta": 0.1, "loss_type": "sigmoid", "label_smoothing": 0.0}
    assert (dpo.data.pack, dpo.data.max_length, dpo.data.pack_length) == (True, 2048, 4096)
    assert dpo.data.train[0].format == "orpo_dpo_mix_40k"
    assert not specs["internlm2_chat_1_8b_dpo_full"].data.pack
    files = specs["internlm2_chat_1_8b_orpo_full_varlenattn_jsonl_dataset"]
    assert (files.objective.name, files.objective.options) == ("orpo", {"beta": 0.1})
    assert (files.data.train[0].path, files.data.train[0].format) == ("json", "preference")
    reward = specs["internlm2_chat_1_8b_reward_full_ultrafeedback"].objective
    assert (reward.name, reward.options["reward_token_id"]) == ("reward", 92527)
    assert set(reward.options) == {"loss_type", "penalty_type", "reward_token_id"}


def test_other_kinds_of_data() -> None:
    specs = every_spec()
    (moss,) = specs["internlm_7b_qlora_moss_sft_plugins_e1"].data.train
    assert (moss.format, moss.bot_name) == ("moss", "InternLM")
    assert specs["internlm_7b_qlora_moss_sft_plugins_e1"].data.template == "moss_sft"
    (agent,) = specs["internlm2_7b_qlora_msagent_react_e3_gpu8"].data.train
    assert (agent.path, agent.hub, agent.format) == ("damo/MSAgent-Bench", "modelscope", "msagent_react")
    (exchange,) = specs["starcoder_qlora_stack_exchange_example"].data.train
    assert (exchange.data_dir, exchange.limit) == ("data/finetune", 20000)
    tokens = specs["mistral_7b_w_tokenized_dataset"].data
    assert (tokens.train[0].format, tokens.max_length, tokens.pack) == ("internevo", 32768, True)
    assert specs["mistral_7b_w_tokenized_dataset"].model.tokenizer == "/new/tokenizer/path"
    words = specs["mistral_7b_w_untokenized_dataset"].data
    assert (words.train[0].format, words.template) == ("internevo_messages", "mistral")
    books = specs["llama2_7b_full_pgbooks_400iters_sp1"].data
    assert (books.train[0].format, books.max_length, books.pack) == ("tokens", 65536, False)


def test_configs_of_the_trainer() -> None:
    spec = every_spec()["internlm_7b_qlora_oasst1_e3_hf"]
    assert (spec.optim.name, spec.optim.lr, spec.optim.weight_decay) == ("paged_adamw", 2e-4, 0)
    # a step of the Trainer is one of the optimiser: 16 iterations
    assert (spec.loop.accumulate, spec.loop.epochs, spec.loop.log_every) == (16, 3, 16)
    assert (spec.schedule.warmup_iters, spec.schedule.warmup_start) == (1600, 0.0)
    assert (spec.checkpoint.every, spec.checkpoint.keep) == (16000, 2)
    assert spec.model.quant is not None
    assert spec.model.lora is not None
    assert spec.data.train[0].format == "oasst1"


def test_the_mmlu_test_becomes_a_callback() -> None:
    (callback,) = every_spec()["internlm_7b_qlora_oasst1_mmlu_e3"].callbacks
    assert callback.name == "mmlu"
    assert callback.options["validation"]["files"] == "./data/mmlu/five_shot_mmlu_val.json"
    assert callback.options["test"]["files"] == "./data/mmlu/five_shot_mmlu_test.json"
    assert callback.options["every"] == 500
