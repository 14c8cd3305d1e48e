"""Writes what a config says of MMLU, the test of knowledge that is taken while training and after it."""

from collections.abc import Sequence

from xtuner.catalog.text import assign, call

SPLITS: Sequence[str] = ("val", "test")


def mmlu_settings() -> list[str]:
    """Write its variables of PART 1."""
    return ["", "# MMLU", "mmlu_data_root = './data/mmlu/'", "evaluate_steps = 500  # how often it is taken"]


def mmlu_data() -> str:
    """Write its data sets, loaders and metrics of PART 3."""
    files = call([(split, f"mmlu_data_root + 'five_shot_mmlu_{split}.json'") for split in SPLITS])
    blocks = [assign("mmlu_fs_dataset", call([("type", "load_dataset"), ("path", "'json'"), ("data_files", files)]))]
    for split in SPLITS:
        rows = call(
            [
                ("type", "process_hf_dataset"),
                ("dataset", "mmlu_fs_dataset"),
                ("tokenizer", "tokenizer"),
                ("dataset_map_fn", "default_map_fn"),
                ("max_length", "max_length"),
                ("input_ids_with_output", "False"),
                ("pack_to_max_length", "False"),
                ("split", repr(split)),
            ]
        )
        batches = call(
            [
                ("batch_size", "1"),
                ("num_workers", "0"),
                ("dataset", f"{split}_mmlu_fs"),
                ("sampler", call([("type", "DefaultSampler"), ("shuffle", "False")])),
                ("collate_fn", call([("type", "mmlu_collate_fn")])),
            ]
        )
        metric = call([("type", "MMLUMetric"), ("tokenizer", "tokenizer"), ("prefix", f"'mmlu_fs_{split}'")])
        blocks += [
            assign(f"{split}_mmlu_fs", rows),
            assign(f"{split}_dataloader", batches),
            assign(f"{split}_evaluator", metric),
        ]
    return "\n\n".join(blocks)


def mmlu_loops() -> str:
    """Write its loops of PART 4."""
    return "val_cfg = dict(type='ValLoop')\ntest_cfg = dict(type='TestLoop')"
