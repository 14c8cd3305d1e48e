"""Loading: what one gets, and one sentence for everything that can be wrong with a folder."""

import json
import shutil
import subprocess
import sys

import pytest
import tiny
import torch
from torch._dynamo.utils import counters
from transformers.modeling_layers import GradientCheckpointingLayer

from xtuner.config.spec import LoraSpec, ModelSpec
from xtuner.errors import UserError
from xtuner.model.attention import PACKED
from xtuner.model.checks import check_vocabulary, explain
from xtuner.model.load import load_model, load_tokenizer
from xtuner.model.recompute import compile_layers


def load(path, train=False, **spec):
    return load_model(ModelSpec(path=str(path), **spec), device="cpu", dtype=torch.float32, train=train)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return tiny.make_tiny_internlm2(tmp_path_factory.mktemp("internlm2"))


@pytest.fixture
def folder(original, tmp_path):
    """A copy that a test may break."""
    return tiny.Path(shutil.copytree(original, tmp_path / "model"))


def test_for_training_and_for_answering(original):
    model = load(original, train=True)
    assert model.training
    assert model.config._attn_implementation == PACKED
    assert model.is_gradient_checkpointing
    assert not load(original, train=True, recompute=False).is_gradient_checkpointing
    assert load(original, train=True, attention="eager").config._attn_implementation == "eager"
    model = load(original)
    assert not model.training
    assert model.config._attn_implementation == "sdpa"
    assert model.dtype == torch.float32


def test_an_auto_map_never_runs_code(folder):
    """Neither the checkpoint's own files, which are not there, nor a question on the terminal."""
    for name, classes in (
        ("config.json", {"AutoConfig": "configuration_x.X", "AutoModelForCausalLM": "modeling_x.X"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["tokenization_x.X", None]}),
    ):
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**values, "auto_map": classes}))
    (folder / "modeling_x.py").write_text("raise RuntimeError('ran')")
    (folder / "configuration_x.py").write_text("raise RuntimeError('ran')")
    load(folder, trust_remote_code=True)
    load_tokenizer(str(folder), trust_remote_code=True)


def test_foreign_code_is_refused_unless_asked_for(folder):
    values = json.loads((folder / "config.json").read_text())
    code = {"AutoConfig": "configuration_x.X", "AutoModelForCausalLM": "modeling_x.X"}
    (folder / "config.json").write_text(json.dumps({**values, "model_type": "x", "auto_map": code}))
    with pytest.raises(UserError, match="its own program code"):
        load(folder)


def test_options_reach_the_tokenizer(original):
    assert load_tokenizer(str(original), options={"padding_side": "right"}).padding_side == "right"


def break_config(folder, **changes):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **changes}))


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def other_weights(folder, **config):
    made = tiny.make_tiny_internlm2(folder.parent / "other", **config)
    shutil.copyfile(made / "model.safetensors", folder / "model.safetensors")


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
BROKEN = [
    (lambda folder: (folder / "config.json").unlink(), r"holds no config\.json"),
    (lambda folder: (folder / "config.json").write_text("{not json"), "not valid JSON"),
    (lambda folder: (folder / "config.json").write_text("{}"), "is empty"),
    (lambda folder: (folder / "config.json").write_text('{"hidden_size": 8}'), "unknown kind"),
    (lambda folder: break_config(folder, model_type="martian"), "of the kind martian"),
    (lambda folder: break_config(folder, model_type="clip"), "cannot|unknown|kind"),
    (lambda folder: break_config(folder, num_attention_heads=5), "do not divide"),
    (lambda folder: break_config(folder, hidden_size="wide"), "hidden_size"),
    (lambda folder: (folder / "model.safetensors").unlink(), r"no file named|cannot be loaded"),
    (lambda folder: cut(folder / "model.safetensors"), "cut short"),
    (
        lambda folder: (folder / "model.safetensors").write_bytes(LFS),
        r"model\.safetensors is only the note .* lfs pull",
    ),
    (lambda folder: (folder / "model.safetensors").write_bytes(b""), "cut short"),
    (lambda folder: break_config(folder, num_hidden_layers=3), r"lacks \d+ weights"),
    (lambda folder: other_weights(folder, hidden=96), r"does not fit its config.json: \S+ has the shape \[.*96"),
]


def test_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(UserError, match="holds no files of a tokenizer"):
        load_tokenizer(str(tiny.make_tiny_qwen2(tmp_path / "bare")))


def test_a_tokenizer_of_a_larger_model(original):
    model = load(original)
    known = model.get_input_embeddings().num_embeddings
    check_vocabulary(model, known - 1, "there")
    with pytest.raises(UserError, match=rf"tokenizer in there gives token {known}, but the model knows only {known} "):
        check_vocabulary(model, known, "there")


@pytest.mark.parametrize(("damage", "message"), BROKEN)
def test_damaged_folders_get_one_sentence(folder, damage, message):
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_missing_shard_is_named(original, tmp_path):
    model = load(original)
    model.save_pretrained(tmp_path / "shards", max_shard_size="200KB")
    shards = sorted((tmp_path / "shards").glob("model-*.safetensors"))
    assert len(shards) > 1
    shards[1].unlink()
    with pytest.raises(UserError, match=shards[1].name.split("-of-")[0]):
        load(tmp_path / "shards")


def test_a_cut_bin_file(folder):
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    load(folder)
    cut(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"cannot be loaded|cut short"):
        load(folder)


@pytest.mark.parametrize("path", ["./absent", "/absent/folder", "a/b/c", "~/absent"])
def test_no_such_folder(path):
    for attempt in (load, load_tokenizer):
        with pytest.raises(UserError, match="There is no model folder"):
            attempt(path)


def test_a_hub_id_that_cannot_be_reached():
    for attempt in (load, load_tokenizer):
        with pytest.raises(UserError, match="neither a folder here nor a model"):
            attempt("nobody-xtuner/nothing")


def test_an_adapter_is_not_a_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="is an adapter"):
        load(tmp_path)


def test_a_run_is_not_a_model(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match=r"is the folder of a run.*xtuner convert merge"):
        load(tmp_path)


def test_a_file_is_not_a_model(original):
    with pytest.raises(UserError, match="is a file"):
        load(original / "config.json")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: not enough memory: you tried 9 bytes"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: 9"),
    ],
)
def test_no_memory(error):
    with pytest.raises(UserError, match="not enough memory to load big"), explain("big", "model"):
        raise error


def test_an_adapter_to_train_needs_its_settings(original):
    with pytest.raises(UserError, match="without LoRA settings"):
        load(original, train=True, adapter="somewhere")
    with pytest.raises(UserError, match="no adapter"):
        load(original, train=True, adapter="somewhere", lora=LoraSpec())


def test_peft_is_imported_only_for_adapters():
    program = (
        "import sys, xtuner.model.load, xtuner.objective.sft\n"
        "print([name for name in ('peft', 'bitsandbytes') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class Layer(GradientCheckpointingLayer):
    def forward(self, hidden, kind):
        return hidden + len(kind)


class Decoder(torch.nn.Module):
    """Has one layer, which a compiler sees another form of for each word it is given."""

    def __init__(self):
        super().__init__()
        self.layer = Layer()

    def forward(self, hidden, kind):
        return self.layer(hidden, kind)


def test_no_form_of_a_layer_is_run_uncompiled():
    """Rows of one sample, of several, of lengths that a kernel takes, without gradients: a real layer has 14 forms, and
    torch alone would compile 8 of them and run the others as they are, which keeps more than was planned."""
    torch._dynamo.reset()
    model = torch.nn.Module()
    model.base_model_prefix, model.decoder = "decoder", Decoder()
    compile_layers(model)
    model.decoder.layer.compile(backend="eager")
    counters["frames"].clear()
    for kind in range(14):
        assert float(model.decoder(torch.zeros(3), "x" * kind).sum()) == 3 * kind
    assert dict(counters["frames"]) == {"total": 14, "ok": 14}
