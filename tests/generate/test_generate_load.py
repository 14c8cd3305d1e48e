"""What people type after `chat`: a model, a base with an adapter, the folder of a run."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny import GOLDEN, copy_tokenizer, make_tiny_internlm2, make_tiny_llama

from xtuner.checkpoint.adapter import file_name, write_adapter
from xtuner.checkpoint.run_record import RunRecord, read_run, write_run
from xtuner.checkpoint.state import save_state
from xtuner.config.spec import LoraSpec, ModelSpec, RunSpec
from xtuner.conversation.builtin import find_template
from xtuner.conversation.chat_model import Sampling
from xtuner.conversation.jinja import to_jinja
from xtuner.conversation.message import Message
from xtuner.errors import UserError
from xtuner.export.merge import merge_run
from xtuner.generate.load import load_chat, pick_dtype
from xtuner.model.load import load_model
from xtuner.model.lora import adapter_config
from xtuner.model.trainable import trainable_state

QUESTION = [Message("user", "Hello?")]
LORA = LoraSpec(r=4, alpha=32)


def said(path: Path, **options: object) -> str:
    chat = load_chat(path, tell=lambda text: None, **options)  # type: ignore[arg-type]
    return "".join(delta.text for delta in chat.stream(QUESTION, Sampling(max_new_tokens=8, temperature=0)))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_internlm2(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def trained(base: Path) -> torch.nn.Module:
    """The base with an adapter that changes what it says."""
    model = load_model(ModelSpec(path=str(base), lora=LORA), device="cpu", dtype=torch.float32, train=False)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2)
    return model


def write_our_adapter(model: torch.nn.Module, folder: Path) -> None:
    tensors = {file_name(name): value for name, value in trainable_state(model).items()}
    write_adapter(folder, adapter_config(model), tensors)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, base: Path, trained: torch.nn.Module) -> Path:
    """A run that has finished: run.json, an adapter, a checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    write_our_adapter(trained, folder / "adapter")
    save_state(folder / "iter_4.pth", {"state_dict": trainable_state(trained), "meta": {"iter": 4}})
    spec = RunSpec.model_validate(
        {"model": {"path": "moved/away", "lora": LORA.model_dump()}, "data": {"train": "x.json"}}
    )
    record = RunRecord(
        spec=spec.model_dump(mode="json"),
        template="llama2_chat",
        base={"path": str(base)},
        adapter="adapter",
        last_checkpoint="iter_4.pth",
        status="finished",
    )
    write_run(folder, record)
    return folder


def test_a_model_folder(base: Path) -> None:
    told: list[str] = []
    chat = load_chat(base, device="cpu", tell=told.append)
    assert chat.template is not None
    assert chat.template.name == "internlm2_chat"
    assert not chat.model.training
    assert next(chat.model.parameters()).dtype == torch.float32, "a CPU computes in fp32"
    assert told == [f"Load LLM from {base}"]


def test_a_base_with_an_adapter(base: Path, run: Path) -> None:
    told: list[str] = []
    load_chat(base, adapter=run / "adapter", tell=told.append)
    assert told == [f"Load LLM from {base}", f"Load adapter from {run / 'adapter'}"]
    assert said(base, adapter=run / "adapter") != said(base)


def test_a_run_folder(base: Path, run: Path, tmp_path: Path) -> None:
    """The adapter, or without it the last checkpoint; the template that was trained, not the one of the base."""
    expected = said(base, adapter=run / "adapter", template="llama2_chat")
    assert said(run) == expected
    assert expected != said(base, template="llama2_chat")
    shutil.copytree(run, tmp_path / "unfinished")
    shutil.rmtree(tmp_path / "unfinished" / "adapter")
    assert said(tmp_path / "unfinished") == expected
    (tmp_path / "unfinished" / "iter_4.pth").unlink()
    with pytest.raises(UserError, match="ended before it saved anything"):
        said(tmp_path / "unfinished")
    write_run(tmp_path / "unfinished", RunRecord(spec=read_run(run).spec, base={"path": "/not/there"}))
    with pytest.raises(UserError, match="not in /not/there any more"):
        said(tmp_path / "unfinished")
    with pytest.raises(UserError, match="has its own adapter"):
        said(run, adapter=run / "adapter")


@pytest.mark.parametrize("bits", [4, 8])
def test_fewer_bits(base: Path, run: Path, bits: int) -> None:
    chat = load_chat(base, adapter=run / "adapter", bits=bits, tell=lambda text: None)  # type: ignore[arg-type]
    kinds = {type(module).__name__ for module in chat.model.modules()}
    assert {4: "Linear4bit", 8: "Linear8bitLt"}[bits] in kinds
    assert list(chat.stream(QUESTION, Sampling(max_new_tokens=4)))[-1].finish


def test_the_template_by_name_wins(base: Path, run: Path) -> None:
    chat = load_chat(run, template="default", tell=lambda text: None)
    assert chat.template is not None
    assert chat.template.name == "default"
    with pytest.raises(UserError, match="no chat template called internlm3_chat") as caught:
        load_chat(base, template="internlm3_chat")
    assert "internlm2_chat" in caught.value.fix


def test_the_adapter_says_which_template_it_was_trained_with(
    base: Path, trained: torch.nn.Module, tmp_path: Path
) -> None:

    tensors = {file_name(name): value for name, value in trainable_state(trained).items()}
    config = adapter_config(trained)
    write_adapter(tmp_path, config, tensors, chat_template=to_jinja(find_template("vicuna")))  # type: ignore[arg-type]
    chat = load_chat(base, adapter=tmp_path, tell=lambda text: None)
    assert chat.template is not None
    assert chat.template.name == "vicuna"


def test_the_chat_template_of_the_tokenizer(tmp_path: Path) -> None:
    folder = make_tiny_llama(tmp_path)
    with pytest.raises(UserError, match="looks like a base model") as caught:
        load_chat(folder)
    assert "internlm2_chat" in caught.value.fix
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}[bot]"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    chat = load_chat(folder, tell=lambda text: None)
    assert chat.template is None
    text = chat.tokenizer.decode(chat.prompt_ids([Message("system", "s"), Message("user", "q")]))
    assert text.replace(" ", "") == "<s>[system]s[user]q[bot]"
    assert said(folder)


def test_offloading(base: Path, run: Path, tmp_path: Path) -> None:
    assert said(base, adapter=run / "adapter", offload_folder=tmp_path) == said(base, adapter=run / "adapter")
    with pytest.raises(UserError, match="offload-folder") as caught:
        said(base, bits=4, offload_folder=tmp_path)
    assert caught.value.exit_code == 2


def test_code_of_others_is_never_run(base: Path, run: Path, tmp_path: Path) -> None:
    """A record that says `trust_remote_code`, and a base with program files: of a kind we know, and of none."""
    folder, copy = tmp_path / "base", tmp_path / "run"
    shutil.copytree(base, folder)
    shutil.copytree(run, copy)
    record = read_run(copy)
    record.spec["model"]["trust_remote_code"] = True
    record.base = {"path": str(folder)}
    write_run(copy, record)
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise ValueError('ran')\n")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "code.X", "AutoModelForCausalLM": "code.X", "AutoTokenizer": ["code.X", None]}
    tokens = json.loads((folder / "tokenizer_config.json").read_text())
    tokens |= {"auto_map": config["auto_map"], "tokenizer_class": "X"}
    for kind in ("internlm2", "unheard_of"):
        (folder / "config.json").write_text(json.dumps({**config, "model_type": kind}))
        if kind == "internlm2":
            assert said(copy) == said(run)
            assert said(copy, offload_folder=tmp_path) == said(run)
            merge_run(copy, tmp_path / "merged", tell=lambda text: None)
            continue
        (folder / "tokenizer_config.json").write_text(json.dumps(tokens))
        for call in (lambda: said(copy), lambda: merge_run(copy, tmp_path / "other", tell=lambda text: None)):
            with pytest.raises(UserError, match="brings its own program code"):
                call()
    assert not (tmp_path / "ran").exists()


def test_what_does_not_fit(base: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model folder"):
        load_chat(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is an adapter, not a model"):
        load_chat(run / "adapter")
    copy_tokenizer(GOLDEN / "llama_tokenizer", tmp_path)
    llama = make_tiny_llama(tmp_path / "llama")
    with pytest.raises(UserError, match="no module called"):
        load_chat(llama, adapter=run / "adapter", template="default")
    wide = make_tiny_internlm2(tmp_path / "wide", hidden=128)
    with pytest.raises(UserError, match="does not fit the model"):
        load_chat(wide, adapter=run / "adapter")


def test_dtypes() -> None:
    assert pick_dtype("auto", "cpu") == torch.float32
    assert pick_dtype("bf16", "cpu") == torch.bfloat16
    with pytest.raises(UserError, match="no dtype fp4"):
        pick_dtype("fp4", "cpu")
