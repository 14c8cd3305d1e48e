"""The MMLU test of a 0.1.x config: `val_dataloader` and `test_dataloader` become options of the callback `mmlu`."""

from xtuner.config.table import Table
from xtuner.errors import UserError
from xtuner.legacy.phrase import Phrase
from xtuner.legacy.rows import read_map_function, read_rows
from xtuner.legacy.vocabulary import word_of

METRIC = "MMLUMetric"
TESTS = (("val", "validation"), ("test", "test"))
"""How 0.1.x calls the two tests, and the options of the callback that name their rows."""


def read_mmlu(root: Phrase) -> Table | None:
    """Translate the tests of a config to a callback; None when there are none.

    Raises:
        UserError: a test other than MMLU, or an argument that is not known.
    """
    options = Table(file=root.table.file, line=root.table.line)
    for word, option in TESTS:
        loader, given = root.part(f"{word}_dataloader"), root.take(f"{word}_evaluator")
        if isinstance(given, Table) and word_of(given.get("type")) != METRIC:
            raise UserError(
                f"{given.where('type')}: the only test that is known is {METRIC}.",
                f"Set {word}_dataloader and {word}_evaluator to None; data.validation=FILE on the command line "
                "measures the loss on rows of your own.",
            )
        metric = root.phrase(f"{word}_evaluator", METRIC)
        if loader is None:
            continue
        if metric is None:
            where = root.where(f"{word}_dataloader")
            raise UserError(f"{where}: {word}_dataloader has no {word}_evaluator.", f"Add dict(type={METRIC}).")
        metric.done()
        options.put(option, read_test_rows(loader), loader.table.line)
    if not options:
        return None
    every = root.take("train_cfg").get("val_interval")
    if every is not None:
        options.put("every", every, root.line("train_cfg"))
    return Table({"name": "mmlu", "options": options}, file=options.file, line=options.line)


def read_test_rows(loader: Phrase) -> Table:
    """Translate the loader of a test to the table of a source; questions are asked one by one, unshuffled."""
    loader.role = "train_dataloader"
    loader.take("batch_size")
    loader.take("sampler")
    collate = loader.phrase("collate_fn", "mmlu_collate_fn", "default_collate_fn")
    if collate is not None:
        collate.role = "default_collate_fn"
        collate.done()
    loader.need("dataset")
    data = loader.phrase("dataset", "process_hf_dataset")
    assert data is not None
    loader.done()
    source = Table(file=data.table.file, line=data.table.line)
    data.need("dataset")
    rows = data.phrase("dataset", "load_dataset", "load_from_disk")
    assert rows is not None
    read_rows(rows, source, data.take("split", "train"))
    read_map_function(data, source)
    for argument in ("tokenizer", "max_length", "input_ids_with_output", "pack_to_max_length", "template_map_fn"):
        data.take(argument)  # the questions of MMLU bring their words themselves, answers are compared, not learned
    data.done()
    return source
