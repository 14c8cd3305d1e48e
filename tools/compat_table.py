"""The command lines and edits of the 0.1.x courses, for `compat_page.py`; paths are shortened."""

from dataclasses import dataclass, field

OASST = "internlm_chat_7b_qlora_oasst1_e3"
AGENT = "internlm_7b_qlora_msagent_react_e3_gpu8"
BASE = "internlm2_1_8b_qlora_alpaca_e3"
CHAT = "internlm2_chat_1_8b_qlora_alpaca_e3"
PRETRAIN = "internlm2_1_8b_full_custom_pretrain_e1"
NEWER = "internlm2_5_chat_7b_qlora_alpaca_e3"
SEES = "llava_internlm2_chat_1_8b_clip_vit_large_p14_336_e1_gpu8_pretrain"
SEES_TUNED = "llava_internlm2_chat_1_8b_qlora_clip_vit_large_p14_336_lora_e1_gpu8_finetune"
INTERNVL = "internvl_v2_internlm2_2b_qlora_finetune"
MKL = "MKL_SERVICE_FORCE_INTEL=1 MKL_THREADING_LAYER=GNU"
NODES = f"{MKL} OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 NPROC_PER_NODE=1 NNODES=2"

NO_CODE = "no program code of the checkpoint is run: the family is built in"
BINARY = "weights are written as .safetensors; `--no-safe-serialization` writes .bin as 0.1.x did"
EPOCHS = "checkpoints are iter_N.pth; epoch_N.pth comes with by_epoch=True and from 0.1.9, and both are read"


@dataclass(frozen=True)
class Command:
    """A command line. `config` is the built-in config that the file in it was copied from."""

    words: str
    config: str = ""
    note: str = ""
    """What is different, where it works differently."""


@dataclass(frozen=True)
class Edit:
    """An edit of a built-in config: texts to replace, and what the config must mean afterwards."""

    what: str
    config: str
    changes: tuple[tuple[str, str], ...]
    means: dict[str, object] = field(default_factory=dict)
    note: str = ""


COMMANDS = (
    Command("xtuner version"),
    Command("xtuner help"),
    Command("xtuner list-cfg"),
    Command("xtuner list-cfg | grep msagent"),
    Command("xtuner list-cfg -p internlm2"),
    Command("xtuner list-cfg -p internlm2_1_8b"),
    Command("xtuner list-cfg -p llava_internlm2_chat_1_8b"),
    Command(f"xtuner copy-cfg {OASST} ."),
    Command(f"xtuner copy-cfg {AGENT} ."),
    Command(f"xtuner copy-cfg {BASE} ft/config"),
    Command(f"xtuner copy-cfg {CHAT} ."),
    Command(f"xtuner copy-cfg {PRETRAIN} ."),
    Command(f"xtuner copy-cfg {NEWER} ./"),
    Command(f"xtuner copy-cfg {SEES_TUNED} llava"),
    Command(f"xtuner train ./{OASST}_copy.py", OASST, EPOCHS),
    Command(f"xtuner train ./{OASST}_copy.py --deepspeed deepspeed_zero2", OASST),
    Command(f"NPROC_PER_NODE=2 xtuner train ./{OASST}_copy.py", OASST),
    Command("xtuner train internlm_chat_7b_qlora_medqa2019_e3.py --deepspeed deepspeed_zero2", OASST),
    Command(f"xtuner train ./{AGENT}_copy.py --deepspeed deepspeed_zero2", AGENT),
    Command(f"xtuner train config/{BASE}_copy.py --work-dir ft/train", BASE),
    Command(f"xtuner train config/{BASE}_copy.py --work-dir ft/train_deepspeed --deepspeed deepspeed_zero2", BASE),
    Command(f"xtuner train config/{BASE}_copy.py --work-dir ft/train --resume ft/train/iter_600.pth", BASE),
    Command(f"xtuner train {BASE} --deepspeed deepspeed_zero2", BASE),
    Command(f"xtuner train ./{CHAT}_copy.py", CHAT),
    Command(f"xtuner train ./config/{NEWER}_copy.py --deepspeed deepspeed_zero2 --work-dir ./work_dirs/assist", NEWER),
    Command(f"xtuner train ./{PRETRAIN}_copy.py", PRETRAIN),
    Command(f"{MKL} NPROC_PER_NODE=2 xtuner train ./{CHAT}_copy.py --deepspeed deepspeed_zero3", CHAT),
    Command(f"{NODES} xtuner train {CHAT}_copy.py", CHAT),
    Command(f"{NODES} NODE_RANK=0 PORT=20821 ADDR=192.168.0.1 xtuner train {CHAT}_copy.py --work-dir node0", CHAT),
    Command(f"{NODES} NODE_RANK=1 PORT=20821 ADDR=192.168.0.1 xtuner train {CHAT}_copy.py --work-dir node1", CHAT),
    Command(f"NPROC_PER_NODE=8 xtuner train {SEES} --deepspeed deepspeed_zero2", SEES),
    Command(f"NPROC_PER_NODE=8 xtuner train {SEES_TUNED} --deepspeed deepspeed_zero2", SEES_TUNED),
    Command(f"xtuner train llava/{SEES_TUNED}_copy.py --deepspeed deepspeed_zero2", SEES_TUNED),
    Command(f"NPROC_PER_NODE=1 xtuner train v2/{INTERNVL}.py --work-dir run --deepspeed deepspeed_zero1", INTERNVL),
    Command(f"xtuner convert pth_to_hf ./{OASST}_copy.py ./work_dirs/{OASST}_copy/epoch_1.pth ./hf", OASST, BINARY),
    Command(f"xtuner convert pth_to_hf ft/train/{BASE}_copy.py ft/train/iter_768.pth ft/huggingface", BASE, BINARY),
    Command(
        f"xtuner convert pth_to_hf ft/train/{BASE}_copy.py ft/train/iter_768.pth ft/huggingface --fp32 "
        "--max-shard-size 2GB",
        BASE,
        BINARY,
    ),
    Command(f"xtuner convert pth_to_hf ./{CHAT}_copy.py work_dirs/{CHAT}_copy/iter_384.pth ./hf", CHAT, BINARY),
    Command(f"{MKL} xtuner convert pth_to_hf ./{PRETRAIN}_copy.py work_dirs/x/iter_2624.pth ./hf", PRETRAIN, BINARY),
    Command(f"xtuner convert pth_to_hf {SEES} iter_2181.pth llava_data/iter_2181_hf", SEES),
    Command(f"xtuner convert pth_to_hf llava/{SEES_TUNED}_copy.py iter_1200.pth iter_1200_hf", SEES_TUNED),
    Command("xtuner convert merge ./internlm-chat-7b ./hf ./merged --max-shard-size 2GB", note=BINARY),
    Command("xtuner convert merge ft/model ft/huggingface ft/final_model", note=BINARY),
    Command(f"{MKL} xtuner convert merge internlm2-1_8b ./hf ./merged --max-shard-size 2GB", note=BINARY),
    Command("xtuner chat ./merged --prompt-template internlm_chat", note=NO_CODE),
    Command("xtuner chat ./merged --bits 4 --prompt-template internlm_chat", note=NO_CODE),
    Command("xtuner chat ft/final_model --prompt-template internlm2_chat", note=NO_CODE),
    Command("xtuner chat ft/model --adapter ft/huggingface --prompt-template internlm2_chat", note=NO_CODE),
    Command("xtuner chat ./internlm-chat-7b --adapter internlm-7b-qlora-msagent-react --lagent"),
    Command(
        "xtuner chat internlm2-chat-1_8b --visual-encoder clip-vit-large-patch14-336 --llava iter_2181_hf "
        "--prompt-template internlm2_chat --image oph.jpg"
    ),
)

QUANT = """        quantization_config=dict(
            type=BitsAndBytesConfig, load_in_4bit=True, load_in_8bit=False, llm_int8_threshold=6.0,
            llm_int8_has_fp16_weight=False, bnb_4bit_compute_dtype=torch.float16, bnb_4bit_use_double_quant=True,
            bnb_4bit_quant_type='nf4',
        ),
    ),
    lora=dict(type=LoraConfig, r=64, lora_alpha=16, lora_dropout=0.1, bias='none', task_type='CAUSAL_LM',),
)"""
JSON = ("path=alpaca_en_path)", "path='json', data_files=dict(train=alpaca_en_path))")

EDITS = (
    Edit(
        "`pretrained_model_name_or_path` -> a folder here, a relative one, a link",
        CHAT,
        (("'internlm/internlm2-chat-1_8b'", "'./models/internlm2-chat-1_8b'"),),
        {"model.path": "./models/internlm2-chat-1_8b", "model.tokenizer": None},
    ),
    Edit(
        "`llm_name_or_path`, `visual_encoder_name_or_path` -> folders here",
        SEES_TUNED,
        (
            ("'internlm/internlm2-chat-1_8b'", "'./models/internlm2-chat-1_8b'"),
            ("'openai/clip-vit-large-patch14-336'", "'./models/clip'"),
        ),
        {"model.path": "./models/internlm2-chat-1_8b", "model.vision.encoder": "./models/clip"},
        "read as meant; training with pictures is not possible yet",
    ),
    Edit(
        "`data_path` -> a folder here with *_train.jsonl files",
        OASST,
        (("'timdettmers/openassistant-guanaco'", "'./openassistant-guanaco'"),),
        {"data.train.0.path": "./openassistant-guanaco", "data.train.0.split": "train"},
    ),
    Edit(
        "`alpaca_en_path` -> a JSON file, `data_files=dict(train=alpaca_en_path)`, `dataset_map_fn=None`",
        CHAT,
        (("'tatsu-lab/alpaca'", "'datas/assistant.json'"), JSON, ("=alpaca_map_fn", "=None")),
        {"data.train.0.files": "datas/assistant.json", "data.train.0.format": None, "data.template": "internlm2_chat"},
    ),
    Edit(
        "`data_files=[...]`, a list of files",
        PRETRAIN,
        (("'/path/to/json/file.json'", "'a.json', 'b.json'"),),
        {"data.train.0.files": ["a.json", "b.json"], "data.train.0.format": "pretrain"},
    ),
    Edit(
        "`data_root`, `data_path`, `image_folder` -> folders here",
        SEES_TUNED,
        (("'./data/llava_data/'", "'./llava_data/'"),),
        {"data.train.0.image_folder": "./llava_data/llava_images"},
        "read as meant; training with pictures is not possible yet",
    ),
    Edit(
        "`dataset_map_fn=openai_map_fn`, with its import in place of another",
        BASE,
        (("alpaca_map_fn", "openai_map_fn"), JSON),
        {"data.train.0.format": "openai"},
    ),
    Edit(
        "`max_length`, `batch_size`, `accumulative_counts`, `max_epochs`, `lr`, `dataloader_num_workers`",
        BASE,
        (
            ("max_length = 2048", "max_length = 1024"),
            ("batch_size = 1 ", "batch_size = 2 "),
            ("accumulative_counts = 16", "accumulative_counts = 4"),
            ("max_epochs = 3", "max_epochs = 2"),
            ("lr = 2e-4", "lr = 1e-4"),
            ("dataloader_num_workers = 0", "dataloader_num_workers = 4"),
        ),
        {"data.max_length": 1024, "loop.batch_size": 2, "loop.accumulate": 4, "loop.epochs": 2, "optim.lr": 1e-4},
        "the number of workers has no effect: data is prepared before training",
    ),
    Edit(
        "`save_steps`, `save_total_limit`, `evaluation_freq`, `evaluation_inputs`, `SYSTEM = ''`",
        BASE,
        (
            ("save_steps = 500", "save_steps = 300"),
            ("save_total_limit = 2", "save_total_limit = 3"),
            ("evaluation_freq = 500", "evaluation_freq = 300"),
            ("SYSTEM = SYSTEM_TEMPLATE.alpaca", "SYSTEM = ''"),
            ("evaluation_inputs = [", "evaluation_inputs = ['请你介绍一下你自己', "),
        ),
        {"checkpoint.every": 300, "checkpoint.keep": 3, "probe.every": 300, "probe.system": ""},
    ),
    Edit(
        "`prompt_template = PROMPT_TEMPLATE.internlm2_chat` in a config of a base model",
        BASE,
        (("PROMPT_TEMPLATE.default", "PROMPT_TEMPLATE.internlm2_chat"),),
        {"data.template": "internlm2_chat"},
    ),
    Edit(
        "`pretrained_pth` -> a projector of somebody else",
        SEES_TUNED,
        (("pretrained_pth = ", "pretrained_pth = './iter_2181.pth'  # "),),
        {"model.weights": "./iter_2181.pth"},
        "read as meant; training with pictures is not possible yet",
    ),
    Edit(
        "`quantization_config` and `lora` added to a full config, with imports anywhere",
        PRETRAIN,
        (
            ("from xtuner.model import", "from peft import LoraConfig\nfrom xtuner.model import"),
            ("        trust_remote_code=True,\n    ),\n)", f"        trust_remote_code=True,\n{QUANT}"),
            ("model = dict(", "import torch\nfrom transformers import BitsAndBytesConfig\nmodel = dict("),
        ),
        {"model.quant.bits": 4, "model.lora.r": 64, "data.template": None},
    ),
    Edit("a config that was renamed, copied from elsewhere, or reformatted", CHAT, (("\n", "\r\n"),)),
    Edit(
        "a whole file in the words of another 0.1.x version",
        CHAT,
        (
            ("from xtuner.engine.hooks import", "from xtuner.engine import"),
            ("optim_type = AdamW", "from bitsandbytes.optim import PagedAdamW32bit\noptim_type = PagedAdamW32bit"),
        ),
        {"optim.name": "paged_adamw"},
    ),
)

PROGRAMS = {
    "python repeat.py -i unique_data.json -o repeated_data.json -n 200": "`xtuner data repeat`",
    "python xlsx2jsonl.py": "`xtuner data convert`",
    "python convert_to_official.py CONFIG PTH SAVE_DIR": "not yet: it is for models that see pictures",
    "streamlit run web_demo.py": "a program of its own; a merged folder is a folder like that of any model",
}
"""Programs that the courses start beside xtuner -> what does the same here."""
