"""Quantised weights are really small, also on a CPU, and training leaves them alone."""

import pytest
import tiny
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from bitsandbytes.nn import Int8Params, Params4bit

from xtuner.config.spec import LoraSpec, ModelSpec, QuantSpec
from xtuner.errors import UserError
from xtuner.model.fp8_linear import Fp8Linear
from xtuner.model.load import check_spec, load_model
from xtuner.model.lora_layer_4bit import LoraLinear4bit
from xtuner.model.trainable import load_trainable, trainable_state
from xtuner.ops.nf4 import dequantise
from xtuner.ops.packed4bit import Packed4bit

IDS = torch.arange(5, 45).view(2, 20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny.make_tiny_internlm2(tmp_path_factory.mktemp("internlm2"), hidden=128))


def load(folder, quant, train=True, lora=True):
    spec = ModelSpec(path=folder, lora=LoraSpec(r=4) if lora else None, quant=quant)
    return load_model(spec, device="cpu", dtype=torch.float32, train=train)


def stored(model):
    """(class, bytes, number of values) of every decoder weight."""
    found = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Params4bit | Int8Params) and "base_layer" in name:
            count = module.in_features * module.out_features
            found[name] = (type(weight), weight.numel() * weight.element_size(), count)
    return found


@pytest.mark.parametrize(("quant", "kind", "bits"), [(QuantSpec(), Params4bit, 4), (QuantSpec(bits=8), Int8Params, 8)])
def test_weights_are_really_small(folder, quant, kind, bits):
    weights = stored(load(folder, quant))
    assert len(weights) == 10  # every linear layer of the two blocks; the head stays dense
    for weight_kind, size, count in weights.values():
        assert weight_kind is kind
        assert size == count * bits // 8


def test_double_quantisation_of_nf4(folder):
    model = load(folder, QuantSpec())
    state = model.get_base_model().model.layers[0].attention.wqkv.base_layer.weight.quant_state
    assert state.quant_type == "nf4"
    assert state.nested
    single = load(folder, QuantSpec(double=False, type="fp4"))
    state = single.get_base_model().model.layers[0].attention.wqkv.base_layer.weight.quant_state
    assert (state.quant_type, state.nested) == ("fp4", False)


def test_values_are_those_of_bitsandbytes(folder):
    dense = load_model(ModelSpec(path=folder), device="cpu", dtype=torch.float32, train=False)
    weight = dense.model.layers[1].feed_forward.w2.weight.data
    expected = dequantize_4bit(*quantize_4bit(weight, quant_type="nf4", compress_statistics=True))
    layer = load(folder, QuantSpec()).get_base_model().model.layers[1].feed_forward.w2
    assert isinstance(layer, LoraLinear4bit)
    held = layer.base_layer.weight
    torch.testing.assert_close(dequantize_4bit(held.data, held.quant_state), expected)


@pytest.mark.parametrize("quant", [QuantSpec(), QuantSpec(bits=8)])
def test_a_step_moves_the_adapter_and_nothing_else(folder, quant):
    torch.manual_seed(0)
    model = load(folder, quant)
    before = {name: value.clone() for name, value in model.named_parameters()}
    trained = [value for value in model.parameters() if value.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(6):
        model.eval()
        with torch.no_grad():
            model(IDS)  # an evaluation between steps disturbs nothing
        model.train()
        loss = model(IDS, labels=IDS, use_cache=False).loss
        losses.append(loss.item())
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    assert losses[-1] < losses[0] - 0.5
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name]) != value.requires_grad, name


@pytest.mark.parametrize("quant", [QuantSpec(), QuantSpec(bits=8)])
def test_answering_without_an_adapter(folder, quant):
    model = load(folder, quant, train=False, lora=False)
    dense = load_model(ModelSpec(path=folder), device="cpu", dtype=torch.float32, train=False)
    with torch.no_grad():
        off = (model(IDS).logits - dense(IDS).logits).norm() / dense(IDS).logits.norm()
    assert 0 < off < 0.5
    assert not any(value.requires_grad for value in model.parameters())


def test_full_fine_tuning_of_quantised_weights_is_refused_at_once():
    spec = ModelSpec(path="/nowhere", quant=QuantSpec())
    with pytest.raises(UserError, match="cannot be trained themselves"):
        check_spec(spec, train=True)
    with pytest.raises(UserError, match="cannot be trained themselves"):
        load_model(spec, device="cpu", dtype=torch.float32, train=True)
    check_spec(spec, train=False)


def test_rows_that_end_inside_of_a_block_are_read_right_or_refused(tmp_path, monkeypatch):
    """The kernels of bitsandbytes 0.50.2 for CPUs with AVX-512 lose their place there; here every CPU does."""
    folder = str(tiny.make_tiny_internlm2(tmp_path, intermediate_size=96))

    def broken(data, state, right=dequantize_4bit):
        return right(data, state) if state.shape[-1] % state.blocksize == 0 else torch.zeros(state.shape)

    monkeypatch.setattr("xtuner.model.lora_layer_4bit.dequantize_4bit", broken)
    monkeypatch.setattr("bitsandbytes.functional.dequantize_4bit", broken)
    model = load(folder, QuantSpec())
    layer = next(module for name, module in model.named_modules() if name.endswith("layers.0.feed_forward.w2"))
    stored = layer.get_base_layer().weight
    full = dequantise(Packed4bit.of(stored.data, stored.quant_state), torch.float32)
    rows = torch.randn(3, 96)
    torch.testing.assert_close(layer(rows), rows @ full.t())
    with torch.no_grad():
        torch.testing.assert_close(layer(rows), rows @ full.t())
    with pytest.raises(UserError, match=r"rows \(96 numbers in .*feed_forward.w2\) end inside of a block of 64"):
        load(folder, QuantSpec(), train=False, lora=False)
    wide = str(tiny.make_tiny_llama(tmp_path / "llama", hidden=96))
    with pytest.raises(UserError, match=r"rows \(96 numbers in lm_head\) end inside of a block") as caught:
        load(wide, QuantSpec(head=True))
    assert caught.value.fix == "Leave model.quant.head out."


@pytest.mark.parametrize("quant", [QuantSpec(), QuantSpec(bits=8), QuantSpec(bits=8, type="fp8")])
@pytest.mark.parametrize("name", ["wo", "feed_forward"])
def test_a_quantised_layer_is_not_trained_whole(folder, quant, name):
    spec = ModelSpec(path=str(folder), quant=quant, lora=LoraSpec(r=4, targets=["wqkv"], modules_to_save=[name]))
    with pytest.raises(UserError, match=f"{name}, .* stored in 4 or 8 bits") as caught:
        load_model(spec, device="cpu", dtype=torch.float32, train=True)
    assert "model.lora.modules_to_save" in caught.value.fix


def test_dora_over_8_bits_is_refused_on_a_cpu(folder):
    lora = LoraSpec(r=4, dora=True)
    with pytest.raises(UserError, match="DoRA"):
        load_model(
            ModelSpec(path=folder, quant=QuantSpec(bits=8), lora=lora), device="cpu", dtype=torch.float32, train=True
        )
    load_model(ModelSpec(path=folder, quant=QuantSpec(), lora=lora), device="cpu", dtype=torch.float32, train=True)


@pytest.mark.parametrize("quant", [QuantSpec(), QuantSpec(bits=8, type="fp8")])
def test_weights_in_another_form_beside_the_quantised_are_the_same_numbers(folder, quant):
    """4 bits in full, dequantised once instead of in every pass; FP8 transposed. Checkpoints do not hold them."""
    more = quant.model_copy(update={"resident": True})
    plain, resident = load(folder, quant), load(folder, more)
    load_trainable(resident, trainable_state(plain))
    found = 0
    for layer in resident.modules():
        if isinstance(layer, LoraLinear4bit):
            weight = layer.get_base_layer().weight
            assert torch.equal(layer.resident, dequantize_4bit(weight.data, weight.quant_state))
            found += 1
        elif isinstance(layer, Fp8Linear):
            assert torch.equal(layer.transposed.t(), layer.weight)
            assert layer.frozen().transposed.is_contiguous()
            found += 1
    assert found == 10
    results = []
    for model in (plain, resident):
        loss = model(IDS, use_cache=False).logits.logsumexp(-1).sum()
        loss.backward()
        results.append([loss, *(value.grad for value in model.parameters() if value.requires_grad)])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    assert not any("resident" in key or "transposed" in key for key in resident.state_dict())
    assert load(folder, more, train=False).training is False
