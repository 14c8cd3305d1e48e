"""Preference rows become two samples side by side, as 0.1.21 made them, and stay together in packs and batches."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xtuner.config.spec import DataSpec, SourceSpec
from xtuner.conversation.builtin import find_template
from xtuner.conversation.encode import Encoder
from xtuner.conversation.message import Message
from xtuner.dataset import PAIR_FORMATS
from xtuner.dataset.collate import collate
from xtuner.dataset.encode import NOTHING, TOO_LONG, Chunk, Job
from xtuner.dataset.formats.preference import intel_orca_dpo, orpo_dpo_mix_40k, preference
from xtuner.dataset.pair import ALIKE, encode_pairs
from xtuner.dataset.pipeline import Prepared, build_dataset
from xtuner.dataset.row import BadRow, Pair
from xtuner.errors import UserError
from xtuner.model.load import load_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
EXPECTED = json.loads((GOLDEN / "xtuner_data" / "expected_preference.json").read_text(encoding="utf-8"))
ROWS = list(enumerate(EXPECTED["pairs"], 1))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(str(GOLDEN / "internlm2"))


def job(tokenizer: Any, read: Any = preference, max_length: int = 64, **options: Any) -> Job:
    values = {"own": True, "pairs": True, "template": find_template("internlm2_chat")} | options
    return Job("p.json", "preference", read, encoder=Encoder(tokenizer), max_length=max_length, **values)


def samples(chunk: Chunk) -> list[tuple[list[int], list[int]]]:
    ends = np.cumsum(chunk.lengths)[:-1]
    labels = np.where(chunk.trained, chunk.ids, -100)
    parts = zip(np.split(chunk.ids, ends), np.split(labels, ends), strict=True)
    return [(ids.tolist(), row.tolist()) for ids, row in parts]


def test_samples_equal_the_golden_ones(tokenizer: Any) -> None:
    found = samples(encode_pairs(job(tokenizer), ROWS))
    sides = [(row, side) for row in EXPECTED["dpo"] for side in ("chosen", "rejected")]
    expected = [(row[f"{side}_ids"], row[f"{side}_labels"]) for row, side in sides]
    assert found == expected


def test_the_token_of_a_reward_follows_the_cut(tokenizer: Any) -> None:
    found = samples(encode_pairs(job(tokenizer, ending=EXPECTED["reward_token_id"]), ROWS))
    expected = [row[f"{side}_ids"] for row in EXPECTED["reward"] for side in ("chosen", "rejected")]
    assert [ids for ids, _ in found] == expected


@pytest.mark.parametrize("read", [intel_orca_dpo, orpo_dpo_mix_40k])
def test_formats_give_the_golden_pairs(read: Any) -> None:
    texts = {"system": "s", "question": "q", "chosen": "c", "rejected": "r"}
    asked = {"role": "user", "content": "u"}
    talks = {side: [asked, {"role": "assistant", "content": side[0]}] for side in ("chosen", "rejected")}
    pair = read(texts if read is intel_orca_dpo else talks)
    expected = EXPECTED[f"{read.__name__}_map_fn"]
    for side in ("prompt", "chosen", "rejected"):
        found = [{"role": message.role, "content": message.text} for message in getattr(pair, side)]
        assert found == expected[side]


def test_the_table_holds_every_name() -> None:
    assert set(PAIR_FORMATS) == {"preference", "intel_orca_dpo", "orpo_dpo_mix_40k"}


def test_preferences_come_in_many_shapes() -> None:
    wanted = Pair([Message("user", "q")], [Message("assistant", "a")], [Message("assistant", "b")])
    asked = {"role": "user", "content": "q"}
    for row in (
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"question": "q", "chosen": "a", "rejected": "b"},
        {"prompt": [asked], "chosen": {"role": "assistant", "content": "a"}, "rejected": "b"},
        {"chosen": [asked, {"from": "gpt", "value": "a"}], "rejected": [asked, {"from": "gpt", "value": "b"}]},
        {"prompt": "q", "chosen": [asked, {"role": "assistant", "content": "a"}], "rejected": "b"},
    ):
        assert preference(row) == wanted
    assert preference({"prompt": "q", "system": "S", "chosen": "a", "rejected": "b"}).prompt[0] == Message(
        "system", "S"
    )


def test_what_is_left_out(tokenizer: Any) -> None:
    good = {"prompt": "q", "chosen": "a", "rejected": "b"}
    rows = [
        (1, good),
        (2, {**good, "rejected": "a"}),
        (3, {**good, "prompt": "long " * 60}),
        (4, {"prompt": "q", "chosen": "a"}),
        (5, {**good, "prompt": [{"role": "assistant", "content": "x"}]}),
        (6, {**good, "rejected": "b" * 200}),
        (7, {**good, "chosen": "half \ud83d"}),
        (8, {**good, "chosen": [{"role": "user", "content": "x"}]}),
    ]
    chunk = encode_pairs(job(tokenizer), rows)
    assert chunk.rows == [1, 1, 6, 6]
    assert chunk.groups[0] == chunk.groups[1] != chunk.groups[2] == chunk.groups[3]
    assert chunk.truncated == [6]
    assert dict(chunk.dropped) == {
        2: ALIKE,
        3: TOO_LONG,
        4: "no answer in column rejected",
        5: "the prompt does not end with a question",
        7: "a broken character (half of a surrogate pair)",
        8: "an answer does not end with the assistant",
    }
    assert NOTHING not in dict(chunk.dropped).values()


def test_functions_of_users(tokenizer: Any) -> None:
    def read(row: Any) -> Any:
        return {"prompt": row["q"], "chosen": row["good"], "rejected": row["bad"]}

    rows = [(1, {"q": "q", "good": "a", "bad": "b"})]
    ours = encode_pairs(job(tokenizer), [(1, {"prompt": "q", "chosen": "a", "rejected": "b"})])
    assert samples(encode_pairs(job(tokenizer, read, own=False), rows)) == samples(ours)
    with pytest.raises(UserError, match=r"failed on row 2 of p\.json \(KeyError: 'q'\)"):
        encode_pairs(job(tokenizer, read, own=False), [(2, {})])
    with pytest.raises(UserError, match="returned str for row 1") as caught:
        encode_pairs(job(tokenizer, lambda row: "text", own=False), rows)
    assert '"chosen"' in caught.value.fix


def build(folder: Path, tokenizer: Any, rows: list[dict[str, Any]], **options: Any) -> Prepared:
    (folder / "p.json").write_text(json.dumps(rows))
    source = SourceSpec(path=str(folder / "p.json"), **options.pop("source", {}))
    values = {"template": "internlm2_chat", "max_length": 64, "cache": str(folder / "cache")} | options
    ending = values.pop("ending", None)
    return build_dataset(DataSpec(train=[source], **values), tokenizer, seed=0, pairs=True, ending=ending)


def test_pairs_stay_together(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"prompt": f"q{n}", "chosen": f"good{n} " * (n % 5 + 1), "rejected": f"bad{n}"} for n in range(60)]
    for options in ({}, {"pack": False}, {"pack_length": 300}, {"ending": 746}):
        data = build(tmp_path, tokenizer, rows, validation=0.2, **options)
        seen = []
        for part in (data.train, data.validation):
            assert part is not None
            for index in range(len(part)):
                pack = part[index]
                assert len(pack.lengths) % 2 == 0
                texts = [tokenizer.decode(ids) for ids in np.split(pack.input_ids, np.cumsum(pack.lengths)[:-1])]
                for chosen, rejected in zip(texts[::2], texts[1::2], strict=True):
                    number = rejected.split("bad")[1].split("<|")[0]
                    assert f"good{number} " in chosen
                    seen.append(int(number))
                room = options.get("pack_length", 2 * (64 + ("ending" in options)))
                assert sum(pack.lengths) <= room
        assert sorted(seen) == list(range(60))
        widest = max(len(data.train[index].lengths) for index in range(len(data.train)))
        assert (widest == 2) is (options == {"pack": False})
    batch = collate([data.train[0], data.train[1]], [0, 1])
    assert len(batch.packing.cu_seqlens) % 2 == 1


def test_the_objective_and_the_format_must_agree(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"input": "a", "output": "b"}]
    with pytest.raises(UserError, match="preferences have prompt, chosen and rejected"):
        build(tmp_path, tokenizer, rows)
    with pytest.raises(UserError, match="rows of the format alpaca are no pairs"):
        build(tmp_path, tokenizer, rows, source={"format": "alpaca"})
    spec = DataSpec(train=[SourceSpec(path=str(tmp_path / "p.json"), format="intel_orca_dpo")], cache=str(tmp_path))
    with pytest.raises(UserError, match="rows of the format intel_orca_dpo are no conversations"):
        build_dataset(spec, tokenizer, seed=0)


def test_no_prompt_is_a_reason() -> None:
    with pytest.raises(BadRow, match="no prompt"):
        preference({"chosen": "a", "rejected": "b"})
    with pytest.raises(BadRow, match="neither a text nor a list"):
        preference({"prompt": 3, "chosen": "a", "rejected": "b"})
