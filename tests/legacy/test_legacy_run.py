"""0.1.x configs -> `RunSpec`: every tag's spelling, every edit of the courses, every mistake with file and line."""

from pathlib import Path

import pytest

from xtuner.catalog.render import render
from xtuner.config.dump import dump_python, dump_yaml
from xtuner.config.override import parse_override
from xtuner.config.reader import read_text
from xtuner.config.ref import Ref
from xtuner.config.spec import RunSpec
from xtuner.conversation.builtin import SYSTEMS
from xtuner.dataset import FORMATS, PAIR_FORMATS
from xtuner.engine import CALLBACKS, OPTIMISERS
from xtuner.errors import UserError
from xtuner.legacy import vocabulary
from xtuner.legacy.harmless import HARMLESS
from xtuner.legacy.run import BACKENDS, to_run_spec

COURSE = "internlm2_chat_1_8b_qlora_alpaca_e3"
PRETRAIN = "internlm2_1_8b_full_custom_pretrain_e1"

# the way of v0.1.9: no warm-up, checkpoints by epoch, hooks from xtuner.engine, data sets by name, bitsandbytes' AdamW
OLDEST = """
import torch
from bitsandbytes.optim import PagedAdamW32bit
from datasets import load_dataset
from mmengine.dataset import DefaultSampler
from mmengine.hooks import CheckpointHook, DistSamplerSeedHook, IterTimerHook, LoggerHook, ParamSchedulerHook
from mmengine.optim import AmpOptimWrapper, CosineAnnealingLR
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from xtuner.dataset import ConcatDataset, process_hf_dataset
from xtuner.dataset.collate_fns import default_collate_fn
from xtuner.dataset.map_fns import alpaca_map_fn, alpaca_zh_map_fn, template_map_fn_factory
from xtuner.engine import DatasetInfoHook, EvaluateChatHook
from xtuner.model import SupervisedFinetune
from xtuner.utils import PROMPT_TEMPLATE

path = 'internlm/internlm-7b'
lr = 2e-4
tokenizer = dict(type=AutoTokenizer.from_pretrained, pretrained_model_name_or_path=path, trust_remote_code=True,
                 padding_side='right')
model = dict(
    type=SupervisedFinetune,
    llm=dict(
        type=AutoModelForCausalLM.from_pretrained, pretrained_model_name_or_path=path, trust_remote_code=True,
        torch_dtype=torch.float16,
        quantization_config=dict(type=BitsAndBytesConfig, load_in_4bit=True, load_in_8bit=False,
                                 llm_int8_threshold=6.0, llm_int8_has_fp16_weight=False,
                                 bnb_4bit_compute_dtype=torch.float16, bnb_4bit_use_double_quant=True,
                                 bnb_4bit_quant_type='nf4')),
    lora=dict(type=LoraConfig, r=64, lora_alpha=16, lora_dropout=0.1, bias='none', task_type='CAUSAL_LM'))
alpaca_en = dict(
    type=process_hf_dataset, dataset=dict(type=load_dataset, path='tatsu-lab/alpaca'), tokenizer=tokenizer,
    max_length=2048, dataset_map_fn=alpaca_map_fn,
    template_map_fn=dict(type=template_map_fn_factory, template=PROMPT_TEMPLATE.internlm_chat),
    remove_unused_columns=True, shuffle_before_pack=True, pack_to_max_length=True)
alpaca_zh = dict(alpaca_en, dataset=dict(type=load_dataset, path='a/zh'), dataset_map_fn=alpaca_zh_map_fn)
train_dataset = dict(type=ConcatDataset, datasets_cfg=dict(alpaca_en=alpaca_en, alpaca_zh=alpaca_zh))
train_dataloader = dict(batch_size=1, num_workers=0, dataset=train_dataset,
                        sampler=dict(type=DefaultSampler, shuffle=True), collate_fn=dict(type=default_collate_fn))
optim_wrapper = dict(
    type=AmpOptimWrapper, optimizer=dict(type=PagedAdamW32bit, lr=lr, betas=(0.9, 0.999), weight_decay=0),
    clip_grad=dict(max_norm=1, error_if_nonfinite=False), accumulative_counts=16, loss_scale='dynamic',
    dtype='float16')
param_scheduler = dict(type=CosineAnnealingLR, eta_min=lr * 0.1, by_epoch=True, T_max=3, convert_to_iter_based=True)
train_cfg = dict(by_epoch=True, max_epochs=3, val_interval=1)
custom_hooks = [dict(type=DatasetInfoHook, tokenizer=tokenizer),
                dict(type=EvaluateChatHook, tokenizer=tokenizer, every_n_iters=500, evaluation_inputs=['hi'],
                     system='', prompt_template=PROMPT_TEMPLATE.internlm_chat, stop_word='<eoa>')]
default_hooks = dict(
    timer=dict(type=IterTimerHook), logger=dict(type=LoggerHook, interval=10),
    param_scheduler=dict(type=ParamSchedulerHook), checkpoint=dict(type=CheckpointHook, interval=1),
    sampler_seed=dict(type=DistSamplerSeedHook))
env_cfg = dict(cudnn_benchmark=False)
visualizer = None
load_from = None
resume = False
randomness = dict(seed=None, deterministic=False)
"""


def translate(text: str, *options: str) -> RunSpec:
    return to_run_spec(read_text(text, Path("my.py"), "python", dict(map(parse_override, options))))


def edited(name: str, *edits: tuple[str, str]) -> str:
    text = render(name)
    for old, new in edits:
        assert old in text, old
        text = text.replace(old, new)
    return text


def test_the_course_config() -> None:
    spec = translate(
        edited(
            COURSE,
            ("'internlm/internlm2-chat-1_8b'", "'./Shanghai_AI_Laboratory/internlm2-chat-1_8b'"),
            ("'tatsu-lab/alpaca'", "'datas/assistant.json'"),
            ("path=alpaca_en_path)", "path='json', data_files=dict(train=alpaca_en_path))"),
            ("dataset_map_fn=alpaca_map_fn", "dataset_map_fn=None"),
        )
    )
    assert spec.model.path == "./Shanghai_AI_Laboratory/internlm2-chat-1_8b"
    assert spec.model.quant is not None
    assert (spec.model.quant.bits, spec.model.quant.type, spec.model.quant.double) == (4, "nf4", True)
    assert spec.model.lora is not None
    assert (spec.model.lora.r, spec.model.lora.alpha, spec.model.lora.dropout) == (64, 16, 0.1)
    assert spec.model.lora.targets is None
    assert not spec.model.trust_remote_code
    (source,) = spec.data.train
    assert (source.path, source.files, source.format, source.split) == ("json", "datas/assistant.json", None, "train")
    assert (spec.data.template, spec.data.max_length, spec.data.pack) == ("internlm2_chat", 2048, True)
    assert (spec.optim.name, spec.optim.lr, spec.optim.weight_decay, spec.optim.max_norm) == ("adamw", 2e-4, 0, 1)
    assert (spec.schedule.name, spec.schedule.warmup, spec.schedule.warmup_start) == ("cosine", 0.03, 1e-5)
    assert (spec.loop.epochs, spec.loop.batch_size, spec.loop.accumulate) == (3, 1, 16)
    assert spec.loop.precision == "auto"
    assert (spec.checkpoint.every, spec.checkpoint.keep, spec.checkpoint.by_epoch) == (500, 2, False)
    assert spec.probe is not None
    assert (spec.probe.every, spec.probe.system, spec.probe.template) == (500, SYSTEMS["alpaca"], None)
    assert len(dump_yaml(spec).splitlines()) <= 15


def test_full_training_on_plain_texts() -> None:
    spec = translate(render(PRETRAIN))
    assert spec.model.lora is None
    assert spec.model.quant is None
    assert spec.data.template is None
    assert spec.data.train[0].format == "pretrain"
    assert spec.data.train[0].files == ["/path/to/json/file.json"]
    assert spec.optim.lr == 2e-5
    assert spec.probe is not None
    assert spec.probe.template is None


def test_the_course_adds_qlora_to_a_full_config() -> None:
    lora = "lora = dict(type=LoraConfig, r=64, lora_alpha=16, lora_dropout=0.1, bias='none', task_type='CAUSAL_LM')"
    quant = (
        "quantization_config=dict(type=BitsAndBytesConfig, load_in_4bit=True, load_in_8bit=False, "
        "llm_int8_threshold=6.0, llm_int8_has_fp16_weight=False, bnb_4bit_compute_dtype=torch.float16, "
        "bnb_4bit_use_double_quant=True, bnb_4bit_quant_type='nf4',)"
    )
    text = edited(
        PRETRAIN,
        ("from transformers import", "from peft import LoraConfig\nfrom transformers import BitsAndBytesConfig,"),
        ("from xtuner.model import", "import torch\nfrom xtuner.model import"),
        ("code=True,\n    ),\n)", f"code=True,\n        {quant},),\n    {lora})"),
    ).replace("lora = dict", "lora=dict")
    spec = translate(text)
    assert spec.model.quant is not None
    assert spec.model.lora is not None
    assert spec.model.lora.r == 64
    with pytest.raises(UserError, match="cannot be trained themselves"):
        translate(text.replace(lora.replace("lora = ", "lora="), "lora=None"))


def test_the_way_of_the_oldest_version() -> None:
    spec = translate(OLDEST)
    assert [source.format for source in spec.data.train] == ["alpaca", "alpaca_zh"]
    assert spec.data.train[1].path == "a/zh"
    assert spec.optim.name == "paged_adamw"
    assert (spec.schedule.name, spec.schedule.warmup) == ("cosine", 0)
    assert spec.schedule.min_lr == pytest.approx(2e-5)
    assert (spec.checkpoint.every, spec.checkpoint.by_epoch, spec.checkpoint.keep) == (1, True, None)
    named = "datasets_cfg=dict(alpaca_en=alpaca_en, alpaca_zh=alpaca_zh)"
    assert named in OLDEST
    assert translate(OLDEST.replace(named, "datasets=[alpaca_en, alpaca_zh]")) == spec
    elsewhere = OLDEST.replace("from xtuner.engine import", "from xtuner.engine.hooks import")
    assert translate(elsewhere) == spec


@pytest.mark.parametrize("name", ["internlm2_chat_7b_qlora_lawyer_e3", "internlm2_7b_full_finetune_custom_dataset_e1"])
def test_a_dump_says_the_same(name: str) -> None:
    config = read_text(render(name), Path("my.py"), "python")
    dump = dump_python(config.values)
    assert "import" not in dump
    assert translate(dump) == to_run_spec(config)


PARTS = ("train_dataloader", "optim_wrapper", "clip_grad", "param_scheduler", "train_cfg", "randomness")


@pytest.mark.parametrize(
    ("options", "key", "value"),
    [
        (["max_length=512"], "data.max_length", 512),
        (["lr=1e-5"], "optim.lr", 1e-5),
        (["max_epochs=1"], "loop.epochs", 1),
        (["pretrained_model_name_or_path=./m"], "model.path", "./m"),
        (["model.lora.r=8"], "model.lora.r", 8),
        (["model.lora.target_modules=[wqkv,wo]"], "model.lora.targets", ["wqkv", "wo"]),
        (["custom_hooks.1.every_n_iters=90"], "probe.every", 90),
        (["evaluation_inputs=[你好, 再见]"], "probe.questions", ["你好", "再见"]),
        (["SYSTEM=Be brief."], "probe.system", "Be brief."),
        (["work_dir=./w"], "work_dir", "./w"),
        (["load_from=./a.pth"], "model.weights", "./a.pth"),
        (["load_from=./a.pth", "resume=True"], "resume", "./a.pth"),
        (["resume=True"], "resume", "auto"),
        (["randomness.seed=7"], "seed", 7),
        (["save_steps=-1"], "checkpoint.every", None),
        (["save_total_limit=-1"], "checkpoint.keep", None),
        (["model.use_activation_checkpointing=False"], "model.recompute", "none"),
        (["optim_wrapper.dtype=bfloat16"], "loop.precision", "bfloat16"),
        (["train_dataloader.sampler.shuffle=False"], "data.shuffle", False),
        (["train_dataloader.sampler.seed=9"], "seed", 9),
        (["train_dataloader.dataset.max_dataset_length=5"], "data.train.0.limit", 5),
        (["sequence_parallel_size=4"], "strategy.options.sequence_parallel_size", 4),
        (["train_dataloader.dataset.dataset_map_fn=my_file.py:f"], "data.train.0.format", "my_file.py:f"),
        (["train_dataloader.dataset.dataset_map_fn=pkg.mod.f"], "data.train.0.format", "pkg.mod:f"),
        (["train_dataloader.dataset.dataset_map_fn=openai_map_fn"], "data.train.0.format", "openai"),
        (["train_dataloader.dataset.split=None"], "data.train.0.split", None),
        (["train_dataloader.dataset.rename_maps=[[a,b]]"], "data.train.0.rename", {"a": "b"}),
        (["train_dataloader.dataset.template_map_fn=None"], "data.template", "plain"),
        (["tokenizer.eos_token=<|im_end|>"], "model.tokenizer_options", {"eos_token": "<|im_end|>"}),
        (["tokenizer.pretrained_model_name_or_path=./t"], "model.tokenizer", "./t"),
        (["custom_hooks.1.prompt_template=default"], "probe.template", "default"),
        (["custom_hooks.1.stop_words=[x, <|im_end|>]"], "probe.stop_words", ["x"]),
        (["custom_hooks.1.generation_kwargs.top_k=40"], "probe.stop_words", []),
        (["warmup_ratio=0", "param_scheduler.0.start_factor=0.1"], "schedule.warmup_start", 1e-5),
        (["default_hooks.logger.interval=1"], "loop.log_every", 1),
    ],
)
def test_options(options: list[str], key: str, value: object) -> None:
    found: object = translate(render(COURSE), *options).model_dump()
    for part in key.split("."):
        found = found[int(part)] if isinstance(found, list) else found[part]  # type: ignore[index]
    assert found == value


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("        r=64", "        rank=64", "LoraConfig has no argument rank here."),
        ("lora_alpha", "lora_aplha", "Did you mean lora_alpha?"),
        ("type=SupervisedFinetune", "type='SupervisedFinetun'", "Did you mean SupervisedFinetune?"),
        ("PROMPT_TEMPLATE.internlm2_chat", "PROMPT_TEMPLATE.internlm2_chta", "Did you mean internlm2_chat"),
        ("SYSTEM_TEMPLATE.alpaca", "SYSTEM_TEMPLATE.alpca", "Did you mean alpaca"),
        ("param_scheduler = [", "param_schedular = [", "nothing uses param_schedular. Did you mean param_scheduler?"),
        ("optim_wrapper = dict(", "optim_wraper = dict(", "Did you mean optim_wrapper?"),
        ("type=DatasetInfoHook", "type='mmengine.hooks.EMAHook'", "EMAHook cannot be followed: no running average"),
        ("type=DatasetInfoHook", "type='mmengine.hooks.NoSuchHook'", "NoSuchHook is a hook class of mmengine"),
        ("type=AmpOptimWrapper", "type='xtuner.model.DPO'", "DPO does not belong at optim_wrapper"),
        ("type=SupervisedFinetune", "type='xtuner.model.LLaVAModel'", "LLaVAModel needs visual_encoder"),
        ("type=LinearLR", "type='PolyLR'", "PolyLR is not a word"),
        ("batch_size=batch_size", "batch_size='many'", "loop.batch_size is 'many'; it should be a valid integer"),
        ("dataset=alpaca_en,", "dataset='a.json',", "it must be a dict(type=...)"),
        ("path=alpaca_en_path", "path='json', data_files=dict(test='a')", "data_files has no train, only test"),
        ("dataset_map_fn=alpaca_map_fn", "dataset_map_fn='<function f at 0x7f>'", "its name is lost"),
        ("dataset_map_fn=alpaca_map_fn", "dataset_map_fn='alpca_map_fn'", "there is no map function alpca_map_fn"),
        ("max_length=max_length", "max_lenght=max_length", "Did you write max_lenght for max_length?"),
        ("default_hooks = dict(", "default_hooks = dict(ema=dict(type='EMAHook'),", "EMAHook cannot be followed"),
        ("system=SYSTEM", "system=3", "it must be a text. Write system='...'."),
        ("type=DatasetInfoHook", "type='DatasetInfHook'", "Did you mean DatasetInfoHook"),
        ("every_n_iters=", "generation_kwargs=dict(top_k=-5), every_n_iters=", "probe.top_k is -5"),
        ("log_processor = dict(by_epoch=False)", "framework = 'lightning'", "framework is 'lightning'"),
    ],
)
def test_mistakes_say_file_and_line(old: str, new: str, said: str) -> None:
    text = edited(COURSE, (old, new))
    with pytest.raises(UserError) as caught:
        translate(text)
    assert said in str(caught.value)
    lines = [number for number, line in enumerate(text.splitlines(), 1) if new.splitlines()[0].strip() in line]
    assert lines
    assert "my.py" in str(caught.value)
    if "wraper" not in new and "_TEMPLATE." not in new:  # these are noticed where they are missed or used
        place = str(caught.value).split(":")[1]
        assert abs(int(place) - lines[0]) <= 2


def test_options_that_name_nothing() -> None:
    with pytest.raises(UserError, match=r"There is no max_lenght .* Did you mean max_length"):
        translate(render(COURSE), "max_lenght=3")
    with pytest.raises(UserError, match=r"There is no modle .* Did you mean model"):
        translate(render(COURSE), "modle.lora.r=3")
    with pytest.raises(UserError, match=r"the command line: LoraConfig has no argument rr"):
        translate(render(COURSE), "model.lora.rr=3")


def test_data_sets_must_agree() -> None:
    text = render("internlm2_chat_7b_qlora_lawyer_e3")
    last = text.rindex("max_length=max_length")
    with pytest.raises(UserError, match=r"max_length is 9, but 2048 at my\.py:"):
        translate(text[:last] + "max_length=9" + text[last + len("max_length=max_length") :])


def test_slots_of_a_system_text_are_filled_from_the_config() -> None:
    text = edited(COURSE, ("SYSTEM_TEMPLATE.alpaca", "SYSTEM_TEMPLATE.moss_sft\nbot_name = 'Momo'"))
    spec = translate(text)
    assert spec.probe is not None
    assert "Your name is Momo," in spec.probe.system
    assert "{bot_name}" not in spec.probe.system
    mine = translate(edited(COURSE, ("SYSTEM_TEMPLATE.alpaca", "'{max_epochs} {unknown} {'")))
    assert mine.probe is not None
    assert mine.probe.system == "3 {unknown} {"


def test_no_remote_code_whatever_the_config_says() -> None:
    assert "trust_remote_code=True" in render(COURSE)
    assert not translate(render(COURSE)).model.trust_remote_code


def test_the_tables_name_what_exists() -> None:
    assert set(vocabulary.MAP_FUNCTIONS.values()) <= {*FORMATS, *PAIR_FORMATS}
    assert set(vocabulary.OPTIMISERS.values()) <= set(OPTIMISERS)
    assert set(vocabulary.OPTIMISERS) <= set(vocabulary.WORDS)
    assert "throughput" in CALLBACKS
    assert set(BACKENDS.values()) - {None} <= set(CALLBACKS)
    for word, argument in HARMLESS:
        assert word in {**vocabulary.WORDS, **dict.fromkeys(PARTS)}, argument


# every address that configs of 0.1.9, 0.1.17, 0.1.21 and 0.1.23 import from
ADDRESSES = """
bitsandbytes.optim: PagedAdamW32bit
datasets: load_dataset
mmengine.dataset: DefaultSampler
mmengine.hooks: CheckpointHook DistSamplerSeedHook IterTimerHook LoggerHook ParamSchedulerHook
mmengine.optim: AmpOptimWrapper CosineAnnealingLR LinearLR
modelscope.msdatasets: MsDataset
peft: LoraConfig
torch.optim: AdamW
torch.utils.data: BatchSampler
transformers: AutoModelForCausalLM AutoTokenizer BitsAndBytesConfig CLIPImageProcessor CLIPVisionModel LlamaTokenizer
transformers: MistralForCausalLM Trainer TrainingArguments
xtuner.dataset: ConcatDataset InternVL_V1_5_Dataset LLaVADataset MOSSSFTDataset process_hf_dataset process_ms_dataset
xtuner.dataset.collate_fns: default_collate_fn mmlu_collate_fn
xtuner.dataset.collate_fns.preference_collate_fn: preference_collate_fn
xtuner.dataset.intern_repo: build_packed_dataset load_intern_repo_tokenized_dataset
xtuner.dataset.intern_repo: load_intern_repo_untokenized_dataset
xtuner.dataset.map_fns: alpaca_map_fn alpaca_zh_map_fn arxiv_map_fn code_alpaca_map_fn colors_map_fn
xtuner.dataset.map_fns: crime_kg_assitant_map_fn default_map_fn law_reference_map_fn llava_map_fn medical_map_fn
xtuner.dataset.map_fns: msagent_react_map_fn oasst1_map_fn openai_map_fn openorca_map_fn pretrain_map_fn sql_map_fn
xtuner.dataset.map_fns: stack_exchange_map_fn template_map_fn_factory tiny_codes_map_fn wizardlm_map_fn
xtuner.dataset.preference_dataset: build_preference_dataset load_jsonl_dataset orpo_dpo_mix_40k_map_fn
xtuner.dataset.refcoco_json: InvRefCOCOJsonDataset RefCOCOJsonDataset
xtuner.dataset.samplers: InternRepoSampler LengthGroupedSampler
xtuner.engine: DatasetInfoHook EvaluateChatHook ThroughputHook VarlenAttnArgsToMessageHubHook
xtuner.engine.hooks: DatasetInfoHook EvaluateChatHook HFCheckpointHook ThroughputHook VarlenAttnArgsToMessageHubHook
xtuner.engine.runner: TrainLoop
xtuner.evaluation: MMLUMetric
xtuner.model: InternVL_V1_5 LLaVAModel SupervisedFinetune
xtuner.model.dpo: DPO
xtuner.model.orpo: ORPO
xtuner.model.reward: RewardModel
xtuner.model.transformers_models.deepseek_v2: DeepseekV2ForCausalLM
xtuner.parallel.sequence: SequenceParallelSampler
xtuner.utils: PROMPT_TEMPLATE SYSTEM_TEMPLATE
"""


def test_every_address_is_known() -> None:
    pairs = [line.split(": ") for line in ADDRESSES.strip().splitlines()]
    addresses = [f"{module}.{name}" for module, names in pairs for name in names.split()]
    assert len(addresses) == len(set(addresses)) == 84
    for address in addresses:
        name = address.rpartition(".")[2]
        ways = [Ref(address), Ref(f"{address}.from_pretrained"), Ref(f"{address}.load")]
        assert (
            any(vocabulary.word_of(way) for way in (*ways, *map(str, ways)))
            or name in vocabulary.MAP_FUNCTIONS
            or vocabulary.name_in(Ref(f"{address}.default"), name) == "default"
        ), address
