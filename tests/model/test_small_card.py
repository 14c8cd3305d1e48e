"""What makes the smallest cards possible: a head in 4 bits, an embedding on the host; and who cannot have them."""

import pytest
import tiny
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from xtuner.config.spec import LoraSpec, ModelSpec, QuantSpec
from xtuner.dataset.batch import Batch
from xtuner.errors import UserError
from xtuner.model.families.norm_head import NormHead
from xtuner.model.head import base_model, find_head
from xtuner.model.head_4bit import quantise_head
from xtuner.model.host_embedding import HostEmbedding, keep_on_host
from xtuner.model.load import load_model
from xtuner.model.trainable import trainable_state
from xtuner.objective.sft import SFT
from xtuner.ops.packed_head import PackedHead
from xtuner.ops.packing import Packing

LENGTHS = [20, 7, 13]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny.make_tiny_llama(tmp_path_factory.mktemp("llama")))


def load(folder, quant=None, **form):
    torch.manual_seed(1)
    spec = ModelSpec(path=folder, quant=quant, **{"lora": LoraSpec(r=4), **form})
    model = load_model(spec, device="cpu", dtype=torch.float32, train=True)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.05)
    return model


def make_batch():
    torch.manual_seed(2)
    ids = torch.randint(3, 90, (1, sum(LENGTHS)))
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    return Batch(ids, ids.roll(-1), positions, Packing.from_lengths(LENGTHS))


def test_a_head_of_several_slabs_is_proven_and_trained_like_one(folder, monkeypatch):
    """The heads of real models are never one slab: 32,000 x 4,096 is two."""
    whole = gradients(load(folder, QuantSpec(head=True)))
    monkeypatch.setattr("xtuner.ops.packed_head.SLAB", 1)
    model = load(folder, QuantSpec(head=True))
    assert len(find_head(model).product.starts) > 1
    (loss, grads), (expected, others) = gradients(model), whole
    torch.testing.assert_close(loss, expected)
    for grad, other in zip(grads, others, strict=True):
        torch.testing.assert_close(grad, other)


def gradients(model):
    loss = SFT()(model, make_batch()).total
    loss.backward()
    return loss.detach(), [weight.grad for weight in model.parameters() if weight.requires_grad]


def test_training_with_a_4bit_head_is_training_with_what_it_holds(folder):
    model = load(folder, QuantSpec(head=True))
    head = find_head(model)
    assert isinstance(head.module, Linear4bit)
    assert isinstance(head.product, PackedHead)
    assert head.module.weight.numel() == head.module.in_features * head.module.out_features // 2
    assert head.module.weight.quant_state.nested
    assert head.parameters == []
    head.module.compute_dtype = torch.bfloat16  # what model.quant.compute_dtype sets
    assert find_head(model)(torch.randn(2, head.module.in_features)).dtype == torch.bfloat16
    head.module.compute_dtype = None
    dense = load(folder, QuantSpec())
    plain = base_model(dense).lm_head
    assert type(plain) is torch.nn.Linear
    plain.weight.data = dequantize_4bit(head.module.weight.data, head.module.weight.quant_state)
    (loss, grads), (expected, others) = gradients(model), gradients(dense)
    torch.testing.assert_close(loss, expected)
    for grad, other in zip(grads, others, strict=True):
        torch.testing.assert_close(grad, other)
    with torch.no_grad():  # the model's own forward pass, which answers
        ids = make_batch().input_ids
        torch.testing.assert_close(model.eval()(ids).logits, dense.eval()(ids).logits)


def test_an_adapter_on_a_4bit_head(tmp_path):
    """InternLM2 calls its head `output`, and the default targets take it."""
    model = load(str(tiny.make_tiny_internlm2(tmp_path, hidden=128)), QuantSpec(head=True))
    head = find_head(model)
    assert type(head.module).__name__ == "LoraLinear4bit"
    assert len(head.parameters) == 2
    _, grads = gradients(model)
    assert all(grad is not None and grad.abs().sum() > 0 for grad in grads)


@pytest.mark.parametrize("quant", [None, QuantSpec()])
def test_an_embedding_on_the_host_changes_nothing(folder, quant):
    model, plain = load(folder, quant, host_embedding=True), load(folder, quant)
    (loss, grads), (expected, others) = gradients(model), gradients(plain)
    assert torch.equal(loss, expected)
    assert all(torch.equal(grad, other) for grad, other in zip(grads, others, strict=True))
    assert trainable_state(model).keys() == trainable_state(plain).keys()
    assert model.state_dict().keys() == plain.state_dict().keys()


def test_an_embedding_on_the_host_stays_there(folder):
    model = load(folder, host_embedding=True)
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, HostEmbedding)
    assert embedding.num_embeddings == 640
    assert not any("embed_tokens" in name for name, _ in model.named_parameters())
    model.to("meta")
    assert embedding.weight.device.type == "cpu"
    assert next(model.parameters()).device.type == "meta"


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"quant": QuantSpec(head=True), "lora": LoraSpec(r=4, modules_to_save=["lm_head"])}, "is trained whole"),
        ({"host_embedding": True, "lora": LoraSpec(r=4, modules_to_save=["embed_tokens"])}, "embedding is trained"),
        ({"host_embedding": True, "lora": LoraSpec(r=4, targets=["embed_tokens"])}, "embedding is trained"),
    ],
)
def test_what_is_trained_stays_as_it_is(folder, form, said):
    with pytest.raises(UserError, match=said):
        load(folder, **form)


@pytest.mark.parametrize("form", [{"quant": QuantSpec(head=True)}, {"host_embedding": True}])
def test_a_tied_head_is_refused(tmp_path, form):
    with pytest.raises(UserError, match=r"is its embedding too|is the output head too"):
        load(str(tiny.make_tiny_qwen2(tmp_path)), **form)


@pytest.mark.parametrize("form", [{"quant": QuantSpec(head=True)}, {"host_embedding": True}])
def test_a_grown_vocabulary_is_trained(tmp_path, form):
    small = tiny.make_tiny_internlm2(tmp_path, hidden=128, vocab_size=700)  # the tokenizer has 752
    with pytest.raises(UserError, match="trained"):
        load(str(small), resize_vocab=True, **form)


def test_parts_that_do_more_are_refused():
    config = LlamaConfig(
        vocab_size=97, hidden_size=64, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, pad_token_id=0
    )
    model = LlamaForCausalLM(config)
    model.lm_head = NormHead.around(model.lm_head)
    with pytest.raises(UserError, match="no plain linear layer"):
        quantise_head(model, QuantSpec(head=True), None)

    class Scaled(torch.nn.Embedding):
        pass

    model.model.embed_tokens = Scaled(97, 64)
    model.requires_grad_(False)
    with pytest.raises(UserError, match="more than look rows up"):
        keep_on_host(model)


def test_a_model_from_the_library_is_changed_in_place(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny.make_tiny_llama(tmp_path), dtype=torch.float32)
    model.requires_grad_(False)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        expected = model(ids).logits
        keep_on_host(model)
        assert torch.equal(model(ids).logits, expected)
