"""Commands that a server runs for its pages: one at a time, the others in a queue, each cancellable.

A job's command runs under ``_guard.py``, which ends it when this process ends, however that may be. What it prints is
kept in memory, its newest part; how far it is it writes to a file that ``terminal.watched`` finds by ``PROGRESS``.
"""

import codecs
import json
import os
import secrets
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from devinterp_func.show.terminal import PROGRESS

KEPT = 200_000  # characters of what a job prints
QUEUE = 50  # jobs that may wait
PATIENCE = 20.0  # seconds from an interrupt to a termination, and from there to the end
State = Literal["waiting", "running", "stopping", "done", "failed", "cancelled"]
OVER: tuple[State, ...] = ("done", "failed", "cancelled")
Values = Mapping[str, object]  # of a job's form, checked
Command = Callable[[Values], list[str]]
"""The command of a kind of job, from the checked values of its form."""


class Full(RuntimeError):
    """Too many jobs wait."""


class Progress(NamedTuple):
    """How far a job is."""

    done: int
    total: int
    doing: str


@dataclass(eq=False)
class Job:
    """A command and what came of it; changed by its queue alone."""

    number: int
    kind: str
    values: dict[str, object]
    command: list[str]
    state: State = "waiting"
    status: int | None = None  # exit status
    said: str = ""  # what it printed, the newest part
    cut: int = 0  # characters printed before that
    process: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)

    @property
    def over(self) -> bool:
        return self.state in OVER


class Jobs:
    """A queue of jobs, worked off by one thread.

    Args:
        commands: kind of job -> its command.
        patience: seconds given to a cancelled command to end by itself.
        measure: gives the seconds of a plain training step; called once, in the background, when it is first asked for.
    """

    def __init__(
        self,
        commands: Mapping[str, Command],
        patience: float | int = PATIENCE,
        measure: Callable[[], float] | None = None,
    ):
        self.commands = dict(commands)
        self._measure = measure
        self._seconds: float | str | None = None if measure else "it was not measured"
        self.token = secrets.token_urlsafe(32)  # which each form of this process carries
        self.all: list[Job] = []
        self.patience = patience
        self._changed = threading.Condition()
        self._closed = False
        self._folder = tempfile.TemporaryDirectory(prefix="devinterp-jobs-")
        self._worker = threading.Thread(target=self._work, daemon=True)
        self._worker.start()

    def start(self, kind: str, values: Values) -> Job:
        """Puts a job in the queue.

        Raises:
            KeyError: no such kind.
            Full: too many wait.
        """
        command = self.commands[kind](values)
        with self._changed:
            if self._closed or sum(job.state == "waiting" for job in self.all) >= QUEUE:
                raise Full(f"{QUEUE} jobs wait already; cancel some of them, or wait")
            job = Job(len(self.all) + 1, kind, dict(values), command)
            self.all.append(job)
            self._changed.notify_all()
        return job

    def get(self, number: int) -> Job:
        """A job by its number, from 1.

        Raises:
            LookupError: there is none.
        """
        if not 1 <= number <= len(self.all):
            raise LookupError(f"there is no job {number}; there are {len(self.all)}")
        return self.all[number - 1]

    def cancel(self, job: Job) -> None:
        """Takes a job from the queue, or ends it gently; one that is over stays as it is."""
        with self._changed:
            if job.state == "waiting":
                job.state = "cancelled"
            elif job.state == "running":
                job.state = "stopping"
                if job.process is not None and job.process.stdin is not None:
                    job.process.stdin.close()
            self._changed.notify_all()

    def progress(self, job: Job) -> Progress | None:
        """How far a job is; None where it has not said."""
        try:
            with open(self._path(job), "rb") as file:
                file.seek(max(0, os.path.getsize(file.name) - 8192))
                lines = file.read().split(b"\n")[:-1]  # the last is not whole yet
            told = json.loads(lines[-1])
            return Progress(int(told["done"]), int(told["total"]), str(told["doing"]))
        except (OSError, IndexError, ValueError, KeyError, TypeError):
            return None

    def step_seconds(self) -> float | str | None:
        """Seconds of a plain training step; None while it is measured, or why it cannot be."""
        with self._changed:
            measure, self._measure = self._measure, None
        if measure is not None:
            threading.Thread(target=self._measured, args=(measure,), daemon=True).start()
        return self._seconds

    def _measured(self, measure: Callable[[], float]) -> None:
        try:
            self._seconds = measure()
        except Exception as error:  # it is but an estimate: the page says why there is none
            self._seconds = str(error) or type(error).__name__

    def wait(self, job: Job, timeout: float | int | None = None) -> bool:
        """Whether a job is over, after at most so many seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: job.over, timeout)

    def close(self) -> None:
        """Cancels all and waits until the worker has ended; the last thing that is done with a queue."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for job in self.all:
            self.cancel(job)
        self._worker.join(3 * self.patience + 10)
        self._folder.cleanup()

    def _path(self, job: Job) -> Path:
        return Path(self._folder.name) / f"{job.number}.jsonl"

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._next() is not None)
                job = self._next()
                if self._closed or job is None:
                    return
                job.state = "running"
            try:
                self._run(job)
            except Exception as error:  # a job that cannot start is its own failure, not the queue's
                self._say(job, f"{type(error).__name__}: {error}\n")
            with self._changed:
                cancelled = job.state == "stopping" and job.status != 0
                job.state = "cancelled" if cancelled else "done" if job.status == 0 else "failed"
                job.process = None
                self._changed.notify_all()

    def _next(self) -> Job | None:
        return next((job for job in self.all if job.state == "waiting"), None)

    def _run(self, job: Job) -> None:
        guard = [sys.executable, "-I", str(Path(__file__).with_name("_guard.py")), str(self.patience)]
        with subprocess.Popen(
            [*guard, *job.command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | {PROGRESS: str(self._path(job)), "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # an interrupt at the server's terminal reaches the guard through its input alone
        ) as process:
            with self._changed:
                job.process = process
                if job.state == "stopping" and process.stdin is not None:
                    process.stdin.close()
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            assert process.stdout is not None
            while part := process.stdout.read1(65536):  # type: ignore[attr-defined]
                self._say(job, decoder.decode(part))
            with self._changed, suppress(BrokenPipeError):
                if process.stdin is not None:
                    process.stdin.close()
            job.status = process.wait()

    def _say(self, job: Job, text: str) -> None:
        with self._changed:
            job.said += text
            if (over := len(job.said) - KEPT) > 0:
                job.said, job.cut = job.said[over:], job.cut + over
