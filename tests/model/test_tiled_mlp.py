"""MLPs in tiles of tokens: the same numbers, less kept, the same names."""

from collections.abc import Iterator

import pytest
import stock
import tiny
import torch
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM

from xtuner.config.spec import LoraSpec, ModelSpec, RunSpec
from xtuner.engine.plan.card import find_card
from xtuner.engine.plan.choose import list_ways
from xtuner.engine.plan.shape import load_shape
from xtuner.errors import UserError
from xtuner.model import tiled_mlp
from xtuner.model.load import load_model
from xtuner.model.recompute import set_recompute
from xtuner.model.trainable import trainable_state

MAKERS = {"internlm2": tiny.make_tiny_internlm2, "llama": tiny.make_tiny_llama}
IDS = torch.arange(3, 53)[None]


@pytest.fixture(params=MAKERS)
def folder(request, tmp_path):
    return str(MAKERS[request.param](tmp_path))


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tiles of seven tokens, the last one shorter."""
    monkeypatch.setattr(tiled_mlp, "TILE_NUMBERS", 7 * 128)
    return


def build(folder: str, recompute: str, *, lora: bool = True) -> nn.Module:
    torch.manual_seed(0)
    spec = ModelSpec(path=folder, lora=LoraSpec(r=4) if lora else None, recompute=recompute)
    return load_model(spec, device="cpu", dtype=torch.float32, train=True)


def run(model: nn.Module) -> tuple[float, dict[str, torch.Tensor], int]:
    """Return the loss, the gradients, and how many numbers per token and layer were kept beside weights."""
    kept: dict[int, int] = {}
    weights = {weight.data_ptr() for weight in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights and tensor.is_floating_point():
            kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.get_base_model().model if hasattr(model, "get_base_model") else model.model
        loss = hidden(input_ids=IDS, use_cache=False).last_hidden_state.square().mean()
    loss.backward()
    grads = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return float(loss.detach()), grads, sum(kept.values())


@pytest.mark.parametrize("lora", [True, False])
def test_tiles_change_nothing_but_what_is_kept(folder, lora, small_tiles):
    plain, tiled = (build(folder, recompute, lora=lora) for recompute in ("none", "mlp"))
    assert list(trainable_state(tiled)) == list(trainable_state(plain))
    (loss, grads, kept), (same, others, less) = run(plain), run(tiled)
    assert loss == pytest.approx(same, rel=1e-6)
    assert grads.keys() == others.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(others[name], grad, rtol=1e-4, atol=1e-6)
    assert less < 0.7 * kept


def test_without_gradients_the_layer_runs_as_it_is(folder, small_tiles):
    plain, tiled = build(folder, "none").eval(), build(folder, "offload").eval()
    with torch.no_grad():
        assert torch.equal(plain(input_ids=IDS).logits, tiled(input_ids=IDS).logits)


def test_a_compiler_sees_tiles_too(folder, small_tiles):
    """Each tile is one compiled function whose backward pass computes its inside again."""
    plain, tiled = build(folder, "none"), build(folder, "none")
    for layer in (module for module in tiled.modules() if hasattr(module, "gradient_checkpointing")):
        for name in tiled_mlp.NAMES:
            if hasattr(layer, name):
                tile = tiled_mlp.TiledMLP(getattr(layer, name), compiled=False)
                tile.__dict__["run"] = torch.compile(tile.recomputed, backend="aot_eager")
                setattr(layer, name, tile)
    (loss, grads, kept), (same, others, less) = run(plain), run(tiled)
    assert loss == pytest.approx(same, rel=1e-6)
    for name, grad in grads.items():
        torch.testing.assert_close(others[name], grad, rtol=1e-4, atol=1e-6)
    assert less < 0.7 * kept


def test_experts_are_refused_with_a_sentence():
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = MixtralForCausalLM(MixtralConfig(**sizes, num_key_value_heads=4, vocab_size=64))
    with pytest.raises(UserError, match="no plain MLP") as caught:
        set_recompute(model, "mlp")
    assert "model.recompute=layers" in str(caught.value.fix)


@pytest.mark.parametrize("name", [name for name in stock.STOCK if name != "mamba"])
def test_a_plan_chooses_tiles_where_they_work(name, tmp_path):
    """Mamba has no attention, so there is no plan."""
    if not stock.is_known(name):
        pytest.skip("not in this version")
    model = stock.make_model(name).train()
    spec = RunSpec.model_validate({"model": {"path": "m"}, "data": {"train": "x.json"}})
    model.save_pretrained(tmp_path)
    ways = list_ways(spec, load_shape(str(tmp_path)), find_card("24GB"))
    if "mlp" not in ways:
        with pytest.raises(UserError, match="no plain MLP"):
            set_recompute(model, "mlp")
        return
    set_recompute(model, "mlp")
    model(input_ids=IDS, use_cache=False).logits.mean().backward()
