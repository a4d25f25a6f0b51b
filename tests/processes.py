"""Processes that share a training, as torchrun starts them; forked from a server that has imported torch already."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["devinterp_func", "devinterp_func.records", "torch.distributed", "torch._dynamo"])


def start(work: Callable[..., object], size: int, folder: Path, *args: Any) -> list[Any]:
    """Starts ``work(*args)`` in so many processes; what each raised is in the folder, in rank0.txt and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = [CONTEXT.Process(target=_work, args=(rank, size, port, work, folder, args)) for rank in range(size)]
    for process in found:
        process.start()
    return found


def run(work: Callable[..., object], size: int, folder: Path, *args: Any, seconds: float = 90) -> list[str]:
    """What each process raised, "" for nothing; all must have ended in time."""
    return ended(start(work, size, folder, *args), folder, seconds)


def ended(processes: list[Any], folder: Path, seconds: float = 90) -> list[str]:
    """Waits for processes; what each raised."""
    for process in processes:
        process.join(seconds)
    late = [rank for rank, process in enumerate(processes) if process.is_alive()]
    for rank in late:
        processes[rank].kill()
    assert not late, f"ranks {late} are still there after {seconds} s"
    return [said(folder, rank) for rank in range(len(processes))]


def said(folder: Path, rank: int) -> str:
    """What a process raised so far."""
    with suppress(FileNotFoundError):
        return (folder / f"rank{rank}.txt").read_text()
    return ""


def _work(rank: int, size: int, port: int, work: Callable[..., object], folder: Path, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        work(*args)
    except Exception as error:
        (folder / f"rank{rank}.txt").write_text(f"{type(error).__name__}: {error}")
