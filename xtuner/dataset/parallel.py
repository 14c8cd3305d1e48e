"""Owns the work on many rows at once: chunks of a source are encoded in order, by several processes when that pays."""

import contextlib
import gc
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain

import numpy as np

from xtuner.dataset.encode import Chunk, Job, NumberedRow, encode_rows
from xtuner.dataset.pair import encode_pairs
from xtuner.dataset.source import Source
from xtuner.errors import UserError

CHUNK_ROWS = 500
CHUNK_BYTES = 4 << 20
WORTH_BYTES = 8 << 20
"""Below this much data starting processes costs more than it saves."""
MOST_WORKERS = 16
PROVEN_ROWS = 100


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
    first = next(chunks, [])
    chunks = chain([first] if first else [], chunks)
    job.encoder.remember_words()
    if workers < 2 or not sys.platform.startswith("linux"):
        if job.encoder.words and not is_proven(job, first):
            job.encoder.words = None
        for rows in chunks:
            yield encode_chunk(job, rows)
        return
    waiting: deque[tuple[list[NumberedRow], Future[Chunk]]] = deque()
    try:
        if job.encoder.words:
            with _processes(job, 1) as pool:  # a user's function runs in no other process than those made for it
                if not pool.submit(_prove, first).result():
                    job.encoder.words = None
        with _processes(job, workers) as pool:
            for rows in chunks:
                waiting.append((rows, pool.submit(_work, rows)))
                if len(waiting) > 2 * workers:
                    yield _oldest(waiting)
            while waiting:
                yield _oldest(waiting)
    except BrokenProcessPool as error:
        where = f"rows {waiting[0][0][0][0]:,} to {waiting[-1][0][-1][0]:,} of " if waiting else ""
        raise UserError(
            f"A process that prepares data ({where}{source.label}) was ended from outside, most likely because memory "
            "ran out.",
            "Close other programs, or split the data into smaller files.",
        ) from error


def _oldest(waiting: deque[tuple[list[NumberedRow], Future[Chunk]]]) -> Chunk:
    """Wait for the first chunk and take it off; it stays if its process was ended."""
    chunk = waiting[0][1].result()
    waiting.popleft()
    return chunk


@contextlib.contextmanager
def _processes(job: Job, count: int) -> Iterator[ProcessPoolExecutor]:
    """Forked processes: they inherit the job, so tokenizers and functions of users need not be pickled."""
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_start, initargs=(job,))
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def is_proven(job: Job, rows: list[NumberedRow]) -> bool:
    """Whether the quick way of the encoder gives what the plain way gives, tried on the first of `rows`."""
    words, tried = job.encoder.words, rows[:PROVEN_ROWS]
    quick = encode_chunk(job, tried)
    job.encoder.words = None
    plain = encode_chunk(job, tried)
    job.encoder.words = words
    return quick.lengths == plain.lengths and np.array_equal(quick.ids, plain.ids)


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


def encode_chunk(job: Job, rows: list[NumberedRow]) -> Chunk:
    """Encode rows as `job` says: preferences in pairs, all else one by one."""
    return encode_pairs(job, rows) if job.pairs else encode_rows(job, rows)


_JOB: list[Job] = []
"""The job of a worker process."""


def _start(job: Job) -> None:
    # Ctrl-C reaches every process of the terminal; the parent alone answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads inside each process would only get in their way
    gc.freeze()  # what was here before the fork is left in the pages shared with the parent
    gc.set_threshold(50_000)  # rows hold no cycles, so there is little to look for
    _JOB.append(job)


def _prove(rows: list[NumberedRow]) -> bool:
    return is_proven(_JOB[0], rows)


def _work(rows: list[NumberedRow]) -> Chunk:
    return encode_chunk(_JOB[0], rows)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
