"""Owns the work on many rows at once: chunks of a source are encoded in order, by several processes when that pays."""

import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from xtuner.dataset.encode import Chunk, Job, NumberedRow, encode_rows
from xtuner.dataset.source import Source
from xtuner.errors import UserError

CHUNK_ROWS = 500
CHUNK_BYTES = 4 << 20
WORTH_BYTES = 8 << 20
"""Below this much data starting processes costs more than it saves."""
MOST_WORKERS = 16


def encode_source(
    job: Job, source: Source, chosen: set[int] | None = None, *, workers: int | None = None
) -> Iterator[Chunk]:
    """Encode all rows of `source`, or those with the numbers `chosen`; chunks come in the order of the rows.

    `workers` processes share the work; None: as many as there are cores, if there is enough of it.

    Raises:
        UserError: the rows cannot be read, a format function failed, or a process was killed.
    """
    if workers is None:
        workers = min(MOST_WORKERS, _cores()) if source.num_bytes >= WORTH_BYTES else 1
    chunks = read_chunks(source, chosen)
    if workers < 2 or not sys.platform.startswith("linux"):
        for rows in chunks:
            yield encode_rows(job, rows)
        return
    # Forked processes inherit the job, so tokenizers and functions of users need not be pickled.
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(job,))
    waiting: deque[Future[Chunk]] = deque()
    try:
        for rows in chunks:
            waiting.append(pool.submit(_work, rows))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise UserError(
            "A process that prepares data was ended from outside, most likely because memory ran out.",
            "Close other programs, or split the data into smaller files.",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def read_chunks(source: Source, chosen: set[int] | None) -> Iterator[list[NumberedRow]]:
    """Yield numbered rows (from 1) in lists of bounded size."""
    rows: list[NumberedRow] = []
    begun = 0.0
    for number, row in enumerate(source.rows(), 1):
        if chosen is None or number in chosen:
            rows.append((number, row))
        read = source.progress.share * source.num_bytes
        if len(rows) >= CHUNK_ROWS or read - begun > CHUNK_BYTES:
            if rows:
                yield rows
            rows, begun = [], read
    if rows:
        yield rows


_JOB: list[Job] = []
"""The job of a worker process."""


def _start(job: Job) -> None:
    # Ctrl-C reaches every process of the terminal; the parent alone answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads inside each process would only get in their way
    _JOB.append(job)


def _work(rows: list[NumberedRow]) -> Chunk:
    return encode_rows(_JOB[0], rows)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
