"""A run's files written beside the training: one thread, in order, while the next steps are made.

Nothing about the files changes: each is whole or not there, none is rewritten, and what is chained follows in order, as
the thread does one thing after the other and nothing more after a failure. Tensors are never changed in place here, so
in main memory they are handed over as they are. From a GPU they are copied to page-locked memory on a stream of their
own, which the steps do not wait for.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from devinterp_func import tree
from devinterp_func.tree import Tree

PENDING_BYTES = 2**28  # so many wait to be written at most, unless one file alone has more


class Writer:
    """What one thread has to write, in order; made by ``writing``.

    At most ``PENDING_BYTES`` of tensors wait, or one thing of whatever size: what is more waits for its turn. So beside
    the training's own memory there are at most that much, the copies of the file that is being written and, on a GPU, a
    copy in page-locked memory of what waits.
    """

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._pending: deque[tuple[Future[None], int]] = deque()
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._failed = False  # set by the thread: nothing is written after what could not be written
        self.waited = 0.0  # seconds that the training waited for the disk so far

    def put(self, write: Callable[..., object], *args: Any) -> None:
        """Has ``write(*args)`` called after all that was put before.

        Args:
            write: writes a file or two.
            args: its arguments; nothing changes their tensors afterwards.

        Raises:
            RecordError: something put earlier could not be written.
        """
        began = time.perf_counter()
        size = sum(x.nbytes for x in tree.leaves(args) if isinstance(x, Tensor))
        while self._pending and sum(held for _, held in self._pending) + size > PENDING_BYTES:
            self._forget_oldest()
        copied, copying = self._in_main_memory(args)
        self._pending.append((self._pool.submit(self._do, write, copied, copying, [args]), size))
        self.waited += time.perf_counter() - began

    def check(self) -> None:
        """Says what has failed so far, without waiting.

        Raises:
            RecordError: something could not be written.
        """
        while self._pending and self._pending[0][0].done():
            self._forget_oldest()

    def finish(self) -> None:
        """Waits until all is written.

        Raises:
            RecordError: something could not be written.
        """
        began = time.perf_counter()
        while self._pending:
            self._forget_oldest()
        self.waited += time.perf_counter() - began

    def _forget_oldest(self) -> None:
        self._pending.popleft()[0].result()

    def _do(self, write: Callable[..., object], args: Tree, copying: list[torch.cuda.Event], sources: list) -> None:
        """In the thread. The sources are held until they are copied, so that no step takes their memory before."""
        if self._failed:
            return
        try:
            for event in copying:
                event.synchronize()
            sources.clear()
            write(*args)
        except BaseException:
            self._failed = True
            raise

    def _in_main_memory(self, args: Tree) -> tuple[Tree, list[torch.cuda.Event]]:
        """The arguments with every tensor of a GPU on its way to main memory, and what says that it is there."""
        for device in {x.device for x in tree.leaves(args) if isinstance(x, Tensor) and x.is_cuda}:
            stream = self._streams.setdefault(device, torch.cuda.Stream(device))
            stream.wait_stream(torch.cuda.current_stream(device))  # the tensors may still be in the making
        copied = tree.map(lambda x: self._copied(x) if isinstance(x, Tensor) and x.is_cuda else x, args)
        return copied, [stream.record_event() for stream in self._streams.values()]

    def _copied(self, x: Tensor) -> Tensor:
        with torch.cuda.stream(self._streams[x.device]):
            there = torch.empty(x.shape, dtype=x.dtype, device="cpu", pin_memory=True)
            return there.copy_(x, non_blocking=True)


@contextmanager
def writing() -> Iterator[Writer]:
    """A writer; when it is left, however it is left, all that was put is written.

    Raises:
        RecordError: something could not be written; where it is left by another error, that one has it as a note.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="records") as pool:
        writer = Writer(pool)
        try:
            yield writer
        except GeneratorExit:  # closed early, which is no fault
            writer.finish()
            raise
        except BaseException as error:
            _note(writer, error)
            raise
        writer.finish()


def _note(writer: Writer, error: BaseException) -> None:
    try:
        writer.finish()
    except Exception as other:
        error.add_note(f"and of what was recorded before: {other}")
