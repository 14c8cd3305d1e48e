"""Owns the choice of papers from the arXiv metadata that Kaggle offers."""

from collections.abc import Collection
from pathlib import Path
from typing import IO

from xtuner.dataset.progress import show_progress
from xtuner.dataset.reader import Progress, read_json
from xtuner.dataset.table.layout import JsonWriter
from xtuner.errors import UserError

COLUMNS = ("categories", "update_date")


def choose_papers(source: Path, out: IO[bytes], *, categories: Collection[str], start_date: str) -> int:
    """Write the papers of any of `categories` updated on `start_date` (YYYY-MM-DD) or later as a JSON list.

    Returns how many they are.

    Raises:
        UserError: the file is missing, is not JSON, or has other columns.
    """
    if not source.is_file():
        raise UserError(
            f"There is no file {source}.",
            "It is arxiv-metadata-oai-snapshot.json of Kaggle's Cornell-University/arxiv.",
        )
    writer, progress, wanted = JsonWriter(out, listed=True), Progress(), set(categories)
    with show_progress(f"Reading {source}") as show:
        for number, paper in enumerate(read_json(source, progress), 1):
            for column in COLUMNS:
                if not isinstance(paper.get(column), str):
                    raise UserError(
                        f"Row {number} of {source} has no text {column}.", "Give the metadata file of arXiv as it is."
                    )
            if not wanted.isdisjoint(paper["categories"].split()) and paper["update_date"] >= start_date:
                writer.add(paper)
            show(progress.share)
    writer.close()
    return writer.count
