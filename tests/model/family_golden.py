"""What every family of a golden folder must do: compute what the original code computed, pack, cache, save, learn."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from xtuner.checkpoint.shards import ShardReader
from xtuner.config.spec import LoraSpec, ModelSpec, QuantSpec
from xtuner.dataset.batch import IGNORE, Batch
from xtuner.model.attention import packing_arguments
from xtuner.model.load import load_model
from xtuner.objective.sft import SFT
from xtuner.ops.packing import Packing

GOLDEN = Path(__file__).parents[1] / "golden"
ATOL = 1e-4
IMPLEMENTATIONS = ["eager", "sdpa", "xtuner_packed"]


def open_golden(name, implementation="sdpa"):
    """The model in evaluation mode, and the golden values."""
    model = AutoModelForCausalLM.from_pretrained(GOLDEN / name, attn_implementation=implementation, dtype=torch.float32)
    return model, load_file(GOLDEN / name / "golden.safetensors")


def check_logits(model, golden):
    for case in ("seq7", "seq33", "right_pad", "left_pad"):
        mask = golden.get(f"{case}.attention_mask")
        with torch.no_grad():
            logits = model(golden[f"{case}.input_ids"], attention_mask=mask).logits
        where = mask.bool() if mask is not None else torch.ones(logits.shape[:2], dtype=torch.bool)
        torch.testing.assert_close(logits[where], golden[f"{case}.logits"][where], atol=ATOL, rtol=0)
    with torch.no_grad():
        states = model(golden["seq7.input_ids"], output_hidden_states=True).hidden_states
    torch.testing.assert_close(torch.stack(states), golden["seq7.hidden_states"], atol=ATOL, rtol=0)


def check_greedy(model, golden):
    for use_cache in (True, False):
        options = {"max_new_tokens": 12, "do_sample": False, "use_cache": use_cache, "eos_token_id": None}
        found = model.generate(golden["seq7.input_ids"], **options)
        assert torch.equal(found.flatten()[-12:], golden["generate.greedy12"].flatten()[-12:])


def check_gradients(name, model, golden, *, recompute):
    """By the model's own loss, and by the objective that training uses."""
    expected = json.loads((GOLDEN / name / "golden_meta.json").read_text())["grad_norms"]
    model.train()
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    ids, labels = golden["seq33.input_ids"], golden["seq33.labels"]
    out = model(ids, labels=labels)
    torch.testing.assert_close(out.logits[:, -1], golden["seq33.train_logits_last"].view(1, -1), atol=ATOL, rtol=0)
    objective = SFT()(model, make_batch([ids[0]], [labels[0]]))
    for loss in (out.loss, objective.total / objective.weight):
        model.zero_grad()
        loss.backward()
        torch.testing.assert_close(loss.view(1), golden["seq33.train_loss"], atol=1e-5, rtol=1e-5)
        found = {key: parameter.grad.norm().item() for key, parameter in model.named_parameters()}
        assert found == pytest.approx(expected, rel=1e-4)


def make_batch(rows, labels=None):
    """A packed row of samples; every token but the first of each is learned, or those that have `labels` (T,)."""
    targets = [label.roll(-1) for label in labels or rows]
    for target in targets:
        target[-1] = IGNORE
    positions = torch.cat([torch.arange(len(row)) for row in rows])[None]
    packing = Packing.from_lengths([len(row) for row in rows])
    return Batch(torch.cat(rows)[None], torch.cat(targets)[None], positions, packing)


def check_packing(model, vocabulary, lengths=(4, 1, 11, 6), atol=ATOL):
    """Logits of a packed segment equal those of the segment alone."""
    torch.manual_seed(1)
    rows = [torch.randint(3, vocabulary, (1, length)) for length in lengths]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    borders = packing_arguments(Packing.from_lengths(list(lengths)), model)
    with torch.no_grad():
        alone = torch.cat([model(row).logits for row in rows], dim=1)
        packed = model(torch.cat(rows, dim=1), position_ids=positions, use_cache=False, **borders).logits
    torch.testing.assert_close(packed, alone, atol=atol, rtol=1e-5)


def check_cache(model, vocabulary, length=24, cuts=(9, 10, 17), atol=1e-4, crop=True):
    """Logits behind a cache, wherever the text is cut, equal those of the whole; also after a long text and a crop."""
    ids = torch.randint(3, vocabulary, (1, length), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model(ids).logits
        cache, parts = None, []
        for part in ids.tensor_split(cuts, dim=1):
            out = model(part, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            parts.append(out.logits[:, -1])
        expected = [model(ids[:, :end]).logits[:, -1] for end in (*cuts, length)]
        torch.testing.assert_close(torch.stack(parts), torch.stack(expected), atol=atol, rtol=1e-4)
        torch.testing.assert_close(parts[-1], whole[:, -1], atol=atol, rtol=1e-4)
        if not crop:
            return
        cache.crop(5 - length)
        again = model(ids[:, 5:8], past_key_values=cache, use_cache=True).logits
        torch.testing.assert_close(again[:, -1], model(ids[:, :8]).logits[:, -1], atol=atol, rtol=1e-4)


def check_saving(name, model, folder):
    """The folder has the original layout: same names (frequencies follow from the config), same bytes, same keys."""
    model.save_pretrained(folder)
    ours, theirs = ShardReader(folder), ShardReader(GOLDEN / name)
    assert set(ours.names()) == {key for key in theirs.names() if not key.endswith("inv_freq")}
    assert all(torch.equal(ours.get(key), theirs.get(key)) for key in ours.names())
    config = json.loads((folder / "config.json").read_text())
    original = json.loads((GOLDEN / name / "config.json").read_text())
    for key in (
        "auto_map",
        "transformers_version",
        "_from_model_config",
    ):  # the first names .py files that the folder does not hold
        original.pop(key, None)
    assert {key: config.get(key) for key in original} == original
    assert "auto_map" not in config


def load(name, *, quant=None, lora=None, train=True, **options):
    spec = ModelSpec(path=str(GOLDEN / name), quant=quant and QuantSpec(bits=quant), lora=lora, **options)
    return load_model(spec, device="cpu", dtype=torch.float32, train=train)


def learn(model, rows, *, steps, lr, goal=0.0):
    """Train on `rows` by heart, until the mean loss is below `goal` or for so many steps; returns the last one."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0)
    for _ in range(steps):
        loss = SFT()(model, make_batch(rows))
        mean = loss.total / loss.weight
        if mean.item() < goal:
            break
        optimiser.zero_grad()
        mean.backward()
        optimiser.step()
    return mean.item()


SENTENCES = [torch.arange(5, 17), torch.arange(60, 46, -1)]


def check_learning(name, *, quant=None, steps=60, **lora):
    """Two sentences are learned by heart with an adapter."""
    torch.manual_seed(0)
    model = load(name, quant=quant, lora=LoraSpec(r=16, alpha=32, **lora), recompute=False)
    assert learn(model, SENTENCES, steps=steps, lr=1e-2, goal=0.1) < 0.1


def check_merge(name):
    """A merged adapter says what base and adapter say."""
    model = load(name, lora=LoraSpec(r=4, alpha=8), train=False)
    torch.manual_seed(0)
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            parameter.data.normal_(std=0.1)
    ids = torch.arange(5, 40)[None]
    with torch.no_grad():
        expected = model(ids).logits
        assert (expected - open_golden(name)[0](ids).logits).abs().max() > 0.1
        torch.testing.assert_close(model.merge_and_unload()(ids).logits, expected, atol=1e-4, rtol=1e-4)
