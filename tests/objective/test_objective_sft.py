"""Supervised fine-tuning: the right sum, however the samples are spread over rows and batches."""

from dataclasses import replace

import pytest
import tiny
import torch
from torch.nn import functional

from xtuner.config.spec import LoraSpec, ModelSpec, QuantSpec
from xtuner.dataset.batch import IGNORE, Batch
from xtuner.model.load import load_model
from xtuner.objective.sft import SFT
from xtuner.ops.linear_cross_entropy import find_learned
from xtuner.ops.packing import Packing

LENGTHS = [9, 1, 14, 5, 30]


def samples():
    draw = torch.Generator().manual_seed(3)
    rows = [torch.randint(3, 500, (length,), generator=draw) for length in LENGTHS]
    labels = [torch.cat([row[1:], torch.tensor([IGNORE])]) for row in rows]
    for row in labels:
        row[: len(row) // 3] = IGNORE
    return list(zip(rows, labels, strict=True))


def pack(parts):
    ids, labels = (torch.cat(column)[None] for column in zip(*parts, strict=True))
    lengths = [len(row) for row, _ in parts]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    return Batch(ids, labels, positions, Packing.from_lengths(lengths))


@pytest.fixture(scope="module", params=["make_tiny_internlm2", "make_tiny_llama", "make_tiny_qwen2"])
def folder(request, tmp_path_factory):
    return str(getattr(tiny, request.param)(tmp_path_factory.mktemp(request.param)))


def gradients(model, cuts):
    """Run the batches of `cuts`; return the mean loss and every gradient."""
    model.zero_grad()
    objective = SFT()
    weight = sum(int(objective.count(batch)) for batch in cuts)
    total = 0.0
    for batch in cuts:
        loss = objective(model, batch)
        assert loss.weight == int((batch.labels != IGNORE).sum())
        total += loss.total.item() / weight
        (loss.total / weight).backward()
    return total, {name: value.grad.clone() for name, value in model.named_parameters() if value.requires_grad}


@pytest.mark.parametrize("kind", ["full", "lora", "qlora"])
def test_the_loss_does_not_depend_on_the_cut(folder, kind):
    torch.manual_seed(0)
    spec = ModelSpec(
        path=folder,
        lora=None if kind == "full" else LoraSpec(r=4, alpha=16),
        quant=QuantSpec() if kind == "qlora" else None,
    )
    model = load_model(spec, device="cpu", dtype=torch.float32, train=True)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    parts = samples()
    one, expected = gradients(model, [pack(parts)])
    for cuts in ([[0], [1], [2], [3], [4]], [[0, 1, 2], [3, 4]], [[4, 3], [2, 1, 0]]):
        loss, found = gradients(model, [pack([parts[index] for index in cut]) for cut in cuts])
        assert loss == pytest.approx(one, rel=1e-6)
        for name, grad in expected.items():
            assert (found[name] - grad).norm() <= 2e-5 * grad.norm() + 1e-7, name


def test_the_sum_is_cross_entropy_of_the_models_own_logits(folder):
    model = load_model(ModelSpec(path=folder), device="cpu", dtype=torch.float32, train=True)
    for ids, labels in samples():
        loss = SFT()(model, pack([(ids, labels)]))
        logits = model(ids[None]).logits[0]
        expected = functional.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
        torch.testing.assert_close(loss.total, expected, rtol=1e-5, atol=1e-5)


def test_recompute_changes_nothing(folder):
    parts = samples()
    results = []
    for recompute in ("none", "layers", "mlp", "offload", "offload_layers", "offload_groups", 1):
        torch.manual_seed(0)
        spec = ModelSpec(path=folder, lora=LoraSpec(r=4, dropout=0.2), recompute=recompute)
        model = load_model(spec, device="cpu", dtype=torch.float32, train=True)
        torch.manual_seed(1)
        results.append(gradients(model, [pack(parts)]))
    for loss, grads in results[1:]:
        assert results[0][0] == loss
        assert all(torch.equal(grad, grads[name]) for name, grad in results[0][1].items())


def test_places_of_labels_that_were_found_before_are_taken(folder):
    """A card would have to be waited for to find them there."""
    model = load_model(ModelSpec(path=folder), device="cpu", dtype=torch.float32, train=True)
    batch = pack(samples())
    places = find_learned(batch.labels[0])
    loss = SFT()(model, batch).total
    assert torch.equal(SFT()(model, replace(batch, learned=places).to("cpu")).total, loss)
    assert SFT()(model, replace(batch, learned=places[:-5])).total < loss
