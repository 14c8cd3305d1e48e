"""Layers in groups: the same numbers, a fraction of the inputs kept, each layer run as often as the plan says."""

from collections import Counter
from functools import partial

import pytest
import tiny
import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from xtuner.config.spec import LoraSpec, ModelSpec
from xtuner.engine.plan import kept
from xtuner.errors import UserError
from xtuner.model.layer_groups import GROUP, LayerOfGroup, group_layers
from xtuner.model.load import load_model
from xtuner.model.recompute import HostStore
from xtuner.model.trainable import trainable_state

IDS = torch.arange(3, 53)[None]
LAYERS = 6
"""A group, and a smaller one."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny.make_tiny_llama(tmp_path_factory.mktemp("llama"), layers=LAYERS))


def build(folder, recompute, **form):
    torch.manual_seed(0)
    spec = ModelSpec(path=folder, recompute=recompute, **{"lora": LoraSpec(r=4, dropout=0.1), **form})
    return load_model(spec, device="cpu", dtype=torch.float32, train=True)


def layers_of(model):
    return [module.layer for module in model.modules() if isinstance(module, LayerOfGroup)]


def run(model):
    """Return the loss and all gradients."""
    torch.manual_seed(1)
    model.zero_grad()
    loss = model(input_ids=IDS, use_cache=False).logits.logsumexp(-1).mean()
    loss.backward()
    return {"loss": loss.detach()} | {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("lora", [LoraSpec(r=4, dropout=0.1), None])
def test_the_numbers_are_the_same_to_the_last_bit(folder, lora):
    plain, grouped = (build(folder, recompute, lora=lora) for recompute in ("none", "offload_groups"))
    assert list(trainable_state(grouped)) == list(trainable_state(plain))
    expected, found = run(plain), run(grouped)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_compiled_layers_go_in_groups_too(folder, monkeypatch):
    monkeypatch.setattr("torch.compile", partial(torch.compile, backend="aot_eager"))
    torch.compiler.reset()
    form = {"lora": LoraSpec(r=4)}
    plain, grouped = build(folder, "none", **form), build(folder, "offload_groups", compile=True, **form)
    expected = run(plain)
    for name, value in run(grouped).items():
        torch.testing.assert_close(value, expected[name], msg=name)


def test_a_layer_runs_as_often_as_the_plan_says(folder):
    model = build(folder, "offload_groups")
    calls = Counter()
    for place, layer in enumerate(layers_of(model)):
        layer.register_forward_pre_hook(lambda *_, place=place: calls.update([place]))
    run(model)
    # forward, for the inputs of those behind it, and for its own backward pass
    assert [calls[place] for place in range(LAYERS)] == [3, 3, 3, 2, 3, 2]
    assert sum(calls.values()) == LAYERS * (1 + kept.passes_again("offload_groups", LAYERS))
    assert kept.GROUP == GROUP


def test_of_a_group_the_first_input_is_kept(folder, monkeypatch):
    """Of rows of the size of a layer's input, those that would go to the host."""
    kept_rows = set()
    monkeypatch.setattr(HostStore, "_keep", lambda self, x: kept_rows.add((x.data_ptr(), x.shape)) or x)
    counts = {}
    for recompute in ("offload_layers", "offload_groups"):
        kept_rows.clear()
        loss = build(folder, recompute, lora=LoraSpec(r=4)).get_base_model().model(input_ids=IDS, use_cache=False)[0]
        counts[recompute] = len({place for place, shape in kept_rows if shape == loss.shape})
    assert counts["offload_layers"] - counts["offload_groups"] == LAYERS - 2


def test_without_gradients_layers_run_at_once_and_training_reaches_them(folder):
    plain, grouped = build(folder, "none").eval(), build(folder, "offload_groups").eval()
    assert not any(layer.training for layer in layers_of(grouped))
    with torch.no_grad():
        assert torch.equal(plain(input_ids=IDS).logits, grouped(input_ids=IDS).logits)
    assert all(layer.training for layer in layers_of(grouped.train()))


def test_a_pass_that_was_cut_off_leaves_nothing(folder):
    model = build(folder, "offload_groups")
    expected = run(model)
    broken = layers_of(model)[2].register_forward_pre_hook(_fail)
    with pytest.raises(ZeroDivisionError):
        run(model)
    broken.remove()
    with torch.no_grad():
        model(input_ids=IDS)
    assert all(torch.equal(value, expected[name]) for name, value in run(model).items())


def _fail(*_):
    raise ZeroDivisionError


class Decoder(nn.Module):
    """Calls its layers as `step` does."""

    def __init__(self, layers, step):
        super().__init__()
        self.layers, self.step = layers, step

    def forward(self, hidden):
        for layer in self.layers:
            hidden = self.step(layer, hidden)
        return hidden


class Layer(GradientCheckpointingLayer):
    def forward(self, hidden):
        return hidden * 2


class Pair(GradientCheckpointingLayer):
    def forward(self, hidden):
        return hidden * 2, None


@pytest.mark.parametrize(
    ("layers", "step", "said"),
    [
        ([Layer(), Layer()], lambda layer, x: layer(x) + 1, "does more between its layers"),
        ([Layer(), Layer()], lambda layer, x: layer(layer(x)), "does more between its layers"),
        ([Layer(), Layer()], lambda layer, x: x if layer.place else layer(x), "does not call all of its layers"),
        ([Pair(), Pair()], lambda layer, x: layer(x), "give more than what goes to the next"),
        ([Pair(), Pair()], lambda layer, x: layer(x)[0], "does more between its layers"),
    ],
)
def test_a_model_that_does_something_else_with_its_layers_is_refused(layers, step, said):
    decoder = Decoder(nn.ModuleList(layers), step)
    group_layers(decoder)
    with pytest.raises(UserError, match=said):
        decoder(torch.randn(1, 3, 64, requires_grad=True))


def test_stacks_are_grouped_by_themselves():
    decoder = nn.ModuleDict({"seen": nn.ModuleList([Layer()]), "said": nn.ModuleList([Layer() for _ in range(GROUP)])})
    group_layers(decoder)
    assert [decoder["seen"][0].group.size, decoder["said"][0].group.size] == [1, GROUP]
