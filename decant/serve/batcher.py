"""Score requests that arrive at about the same time together: one thread owns the networks, a queue feeds it.

A network takes hardly longer for thirty pictures than for one. So the thread takes the first waiting request, waits a
few milliseconds for more, scores all of their pictures at once and divides the answers. The answer to a request does
not depend on the others in its batch. The queue is bounded: a request that finds it full is refused at once.
"""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int, UInt8

if TYPE_CHECKING:
    from decant.labeltrust.scorer import Judged

Pixels = UInt8[np.ndarray, "n h w c"]
Labels = Int[np.ndarray, " n"]
Judge = Callable[[Pixels, Labels], "Judged"]
"""Scores pictures and their labels, each row by itself."""


class QueueFull(Exception):
    """The queue is full."""


@dataclass(frozen=True)
class Job:
    """One request: its pictures and labels, and the place for its answer."""

    pixels: Pixels
    labels: Labels
    answer: "Future[Judged]" = field(default_factory=Future)


class Batcher:
    """Scores what is submitted. A context manager: its thread lives in the block, and ends when all is answered.

    waiting: requests in the queue at most.
    rows: pictures of a batch from which on it is scored without waiting for more.
    seconds: how long a smaller batch waits for more.
    """

    def __init__(self, judge: Judge, *, waiting: int, rows: int, seconds: float):
        self._judge, self._rows, self._seconds = judge, rows, seconds
        self._queue: queue.Queue[Job | None] = queue.Queue(waiting)
        self._thread = threading.Thread(target=self._work, name="scorer", daemon=True)
        self.batches = 0
        """Batches scored so far."""

    def __enter__(self) -> "Batcher":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.put(None)
        self._thread.join()

    def submit(self, pixels: Pixels, labels: Labels) -> "Future[Judged]":
        """Queues a request and returns the place of its answer. Raises QueueFull."""
        job = Job(pixels, labels)
        try:
            self._queue.put_nowait(job)
        except queue.Full as full:
            raise QueueFull from full
        return job.answer

    def _work(self) -> None:
        is_open = True
        while is_open:
            jobs, is_open = self._next_jobs()
            if jobs:
                self._answer(jobs)

    def _next_jobs(self) -> tuple[list[Job], bool]:
        """(the jobs of the next batch, whether more may come)"""
        jobs: list[Job] = []
        until = float("inf")
        while sum(len(job.labels) for job in jobs) < self._rows:
            try:
                job = self._queue.get(timeout=max(0.0, until - time.monotonic()) if jobs else None)
            except queue.Empty:
                break
            if job is None:
                return jobs, False
            until = min(until, time.monotonic() + self._seconds)
            jobs.append(job)
        return jobs, True

    def _answer(self, jobs: list[Job]) -> None:
        jobs = [job for job in jobs if job.answer.set_running_or_notify_cancel()]  # its client may have gone
        if not jobs:
            return
        try:
            found = self._judge(
                np.concatenate([job.pixels for job in jobs]), np.concatenate([job.labels for job in jobs])
            )
        except Exception as error:  # the thread must live on: whoever waits is told
            for job in jobs:
                job.answer.set_exception(error)
            return
        self.batches += 1
        start = 0
        for job in jobs:
            rows = slice(start, start + len(job.labels))
            job.answer.set_result(type(found)(found.trust[rows], found.suggested[rows], found.suggested_trust[rows]))
            start = rows.stop
