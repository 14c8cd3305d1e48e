"""A batch is one flat row with segment borders; labels are shifted inside segments and never across them."""

import json
from pathlib import Path

import numpy as np

from xtuner.dataset.batch import IGNORE
from xtuner.dataset.collate import collate
from xtuner.dataset.store import Pack

GOLDEN = Path(__file__).parents[1] / "golden" / "xtuner_data" / "expected_collate.json"


def pack(*samples: tuple[list[int], list[int]]) -> Pack:
    ids, labels = (np.concatenate([np.array(sample[part]) for sample in samples]) for part in (0, 1))
    return Pack(ids, labels, [len(sample[0]) for sample in samples])


def test_segments_stay_apart() -> None:
    first = pack(([5, 6, 7], [-100, 6, 7]), ([8, 9], [8, 9]))
    second = pack(([4], [4]), ([1, 2, 3], [-100, -100, 3]))
    batch = collate([first, second], [3, 1])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 4, 1, 2, 3]]
    assert batch.labels.tolist() == [[6, 7, -100, 9, -100, -100, -100, 3, -100]]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1, 0, 0, 1, 2]]
    assert batch.packing.cu_seqlens.tolist() == [0, 3, 5, 6, 9]
    assert batch.packing.max_seqlen == 3
    assert batch.rows == (3, 1)
    assert int((batch.labels != IGNORE).sum()) == 4
    assert {batch.input_ids.dtype, batch.labels.dtype, batch.positions.dtype} == {batch.labels.dtype}


def test_the_golden_samples_without_the_fault_of_the_golden_mask() -> None:
    golden = json.loads(GOLDEN.read_text())
    packs = [pack((item["input_ids"], item["labels"])) for item in golden["instances"]]
    batch = collate(packs, range(3))
    lengths = [len(item["input_ids"]) for item in golden["instances"]]
    begins = [0, lengths[0], lengths[0] + lengths[1]]
    for row, (begin, length) in enumerate(zip(begins, lengths, strict=True)):
        own = slice(begin, begin + length)
        assert batch.input_ids[0, own].tolist() == golden["collated"]["input_ids"][row][:length]
        assert batch.positions[0, own].tolist() == golden["collated"]["position_ids"][row][:length]
        assert batch.labels[0, own].tolist() == [*golden["collated"]["labels"][row][1:length], -100]
