"""Owns the step from the annotations of RefCOCO, RefCOCO+ and RefCOCOg to the train.json that LLaVA recipes read."""

import io
import json
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from xtuner.dataset.progress import show_progress
from xtuner.dataset.table.layout import JsonWriter
from xtuner.errors import UserError

SETS = (("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "umd"))
"""Data sets, and who has split each."""


@dataclass
class Made:
    """How many descriptions were written, and what to know about them."""

    rows: int = 0
    copies: int = 0
    """Left out: the same words for the same picture once more."""
    images: int = 0
    missing: int = 0
    """Pictures that are not in the folder."""


class PlainUnpickler(pickle.Unpickler):
    """Reads lists, dicts, texts and numbers; a file that names any class or function is refused, nothing is called."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuse."""
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def collect(annotations: Path, images: Path, out: IO[bytes]) -> Made:
    """Write a JSON list of {id, image, sents, bbox}, a row per description of the train splits.

    `bbox` are the corners x1, y1, x2, y2 in hundredths of the picture's width and height, rounded down, as 0.1.x wrote
    them. `images` is the folder of COCO train2017; sizes come from the annotations, so pictures are not opened.

    Raises:
        UserError: files are missing or are not those of RefCOCO.
    """
    made, writer = Made(), JsonWriter(out, listed=True)
    known: set[str] = set()
    names: dict[str, bool] = {}
    with show_progress(f"Reading {annotations}") as show:
        for number, (name, splitter) in enumerate(SETS):
            for row in _rows(annotations / name, f"{name}-{splitter}", f"refs({splitter}).p"):
                if row["id"] in known:
                    made.copies += 1
                    continue
                known.add(row["id"])
                if row["image"] not in names:
                    names[row["image"]] = (images / row["image"]).is_file()
                writer.add(row)
            show((number + 1) / len(SETS))
    writer.close()
    made.rows, made.images, made.missing = writer.count, len(names), sum(not there for there in names.values())
    return made


def _rows(folder: Path, prefix: str, refs_name: str) -> Iterator[dict[str, Any]]:
    instances, refs = _load_json(folder / "instances.json"), _load_refs(folder / refs_name)
    try:
        boxes = {box["id"]: box["bbox"] for box in instances["annotations"]}
        sizes = {image["id"]: (image["width"], image["height"]) for image in instances["images"]}
        for ref in refs:
            if ref["split"] != "train":
                continue
            image = f"{ref['image_id']:012d}"
            box = to_corners(boxes[ref["ann_id"]], *sizes[ref["image_id"]])
            for sentence in ref["sentences"]:
                words = sentence["raw"]
                name = f"{prefix}-{image}-{words.replace(' ', '_')}"
                yield {"id": name, "image": f"{image}.jpg", "sents": words, "bbox": box}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"The annotations in {folder} are not laid out as RefCOCO's ({error!r}).", "Download them again."
        ) from error


def to_corners(box: list[float], width: float, height: float) -> list[int]:
    """Turn x, y, width, height in pixels into corners in hundredths of the picture, rounded down."""
    x, y, wide, high = box
    return [int(place * 100) for place in (x / width, y / height, (x + wide) / width, (y + high) / height)]


def _load_json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(_read(file)))
    except (ValueError, TypeError) as error:
        raise UserError(f"{file} is not the JSON it should be.", "Download it again.") from error


def _load_refs(file: Path) -> list[dict[str, Any]]:
    try:
        return list(PlainUnpickler(io.BytesIO(_read(file)), encoding="utf-8").load())
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{file} cannot be read: {error}.", "Download it again, from the authors of RefCOCO."
        ) from error


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(
            f"{file} cannot be read: {error.strerror}.",
            f"The folder of annotations holds {', '.join(name for name, _ in SETS)}; name it with --ann-path.",
        ) from error
