"""Processes that share each batch: torchrun's, or one alone. Sums in rank order, and who is lost when one is.

Everything goes from process to process (``isend``, ``irecv``), so whoever does not answer is known by name. A sum is
made in three steps: each rank gets one stretch of everybody's numbers, adds them in rank order, and hands the sum on.
That moves what a ring moves, and its bits are those of one process that adds the same numbers in the same order, which
no all-reduce of torch promises; so a run of several processes is replayed by one.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from devinterp_func import checks

TIMEOUT = 600.0  # seconds that a process waits for another
Value = TypeVar("Value")


class LostRank(RuntimeError):
    """Another process died, hangs or stopped; the message names it."""


@dataclass(frozen=True, eq=False)
class World:
    """A process's place among those that share each batch."""

    rank: int = 0
    size: int = 1
    timeout: float = TIMEOUT  # seconds
    store: Any = None  # torch.distributed's, where the first to miss a rank says which
    control: Any = None  # its group for what is no gradient, on CPUs

    def __repr__(self) -> str:
        return f"World(rank {self.rank} of {self.size})"


ALONE = World()


@contextmanager
def joined(device: str = "cpu", timeout: float = TIMEOUT) -> Iterator[World]:
    """Joins the processes that torchrun started; leaves them at the end. Without torchrun: ``ALONE``.

    Args:
        device: that each computes on: "cpu", or "cuda" for the one of its local rank.
        timeout: seconds to wait for another process, which may be evaluating or writing.

    Raises:
        TypeError, ValueError: timeout is no positive number, or device is one of several CUDA devices.
        LostRank: not all came.
    """
    timeout = checks.positive("timeout", timeout)
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield ALONE
        return
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device is {device!r}; with several processes it must be 'cpu', or 'cuda' for one each")
    world = _join(device, timeout)
    try:
        yield world
    except BaseException as error:
        if not isinstance(error, LostRank):
            _tell(world, world.rank, f"{type(error).__name__}: {error}")
        raise
    finally:
        dist.destroy_process_group()


def _join(device: str, timeout: float) -> World:
    wait, missing = timedelta(seconds=timeout), list[int]()
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=wait))
        store = dist.PrefixStore("devinterp_func", store)
        store.set(f"here/{rank}", "")
        missing = list(range(size))
        backend = "gloo" if device == "cpu" else "nccl"
        if device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=wait)
        control = dist.group.WORLD if device == "cpu" else dist.new_group(backend="gloo", timeout=wait)
    except (RuntimeError, ValueError) as error:
        with suppress(RuntimeError):
            missing = [rank for rank in missing if not store.check([f"here/{rank}"])]
        who = f"rank {missing[0]} did not come" if missing else "the processes did not all find each other"
        raise LostRank(f"{who} within {timeout:g} s: {error}") from error
    return World(rank, size, timeout, store, control)


# ---- what goes between them


def sum_in_order(world: World, mine: Tensor, scratch: Tensor) -> Tensor:
    """Σ of all ranks' numbers, added in rank order, in place: the same bits on each.

    Args:
        world: the processes.
        mine: this rank's numbers, flat, their number a multiple of the ranks'; overwritten by the sum.
        scratch: as many numbers, overwritten too.

    Raises:
        LostRank: another process did not come.
    """
    chunks, got = mine.view(world.size, -1), scratch.view(world.size, -1)
    if mine.is_cuda:
        _roll_call(world)
    others = _others(world)
    _swap(world, {rank: chunks[rank] for rank in others}, {rank: got[rank] for rank in others})
    terms = [chunks[rank] if rank == world.rank else got[rank] for rank in range(world.size)]
    own = add_in_order(terms, got[world.rank])
    _swap(world, dict.fromkeys(others, own), {rank: chunks[rank] for rank in others})
    chunks[world.rank].copy_(own)
    return mine


def add_in_order(terms: list[Tensor], out: Tensor) -> Tensor:
    """((t₀ + t₁) + t₂) + ..., of two terms or more."""
    torch.add(terms[0], terms[1], out=out)
    for term in terms[2:]:
        out.add_(term)
    return out


def gather(world: World, value: Value) -> list[Value] | None:
    """Every rank's value, in rank order, on rank 0; None on the others.

    Raises:
        LostRank: another process did not come.
    """
    _roll_call(world)  # else who waits for rank 0, which waits for another, would name rank 0
    if world.rank:
        _watch(world, 0, lambda: dist.send_object_list([value], dst=0, group=world.control))
        return None
    return [value, *(_receive(world, rank) for rank in _others(world))]


def share(world: World, make: Callable[[], Value]) -> Value:
    """What rank 0 makes, on every rank; made by it alone.

    Raises:
        LostRank: another process did not come, or rank 0 could not make it.
    """
    if world.rank:
        found: Value = _receive(world, 0)
        return found
    value = make()
    for rank in _others(world):
        _watch(world, rank, lambda rank=rank: dist.send_object_list([value], dst=rank, group=world.control))  # type: ignore[misc]
    return value


def _others(world: World) -> list[int]:
    return [rank for rank in range(world.size) if rank != world.rank]


def _receive(world: World, rank: int) -> Any:
    found = [None]
    _watch(world, rank, lambda: dist.recv_object_list(found, src=rank, group=world.control))
    return found[0]


def _roll_call(world: World) -> None:
    """Every rank hears from each other, on the CPU: a group of GPUs does not say who is missing."""
    here = torch.zeros(1)
    _swap(world, dict.fromkeys(_others(world), here), {rank: torch.zeros(1) for rank in _others(world)})


def _swap(world: World, sent: Mapping[int, Tensor], got: Mapping[int, Tensor]) -> None:
    """Sends each other rank what is its own, and gets what it sends."""
    if next(iter(got.values())).is_cuda:
        pairs = [(dist.isend, sent), (dist.irecv, got)]
        works = dist.batch_isend_irecv([dist.P2POp(do, x, rank) for do, given in pairs for rank, x in given.items()])
        for work in works:
            work.wait()
        return
    begun: list[tuple[int, Any]] = []
    for rank in got:
        begun.append((rank, _watch(world, rank, lambda rank=rank: dist.irecv(got[rank], rank, group=world.control))))  # type: ignore[misc]
        begun.append((rank, _watch(world, rank, lambda rank=rank: dist.isend(sent[rank], rank, group=world.control))))  # type: ignore[misc]
    for rank, work in begun:
        _watch(world, rank, work.wait)


# ---- who is lost


def _watch(world: World, rank: int, act: Callable[[], Value]) -> Value:
    """Does what waits for a rank; if that fails, says who is lost."""
    try:
        return act()
    except RuntimeError as error:
        _lose(world, rank, error)


def _lose(world: World, rank: int, error: Exception) -> NoReturn:
    """The first to notice says who is lost; those who only saw others leave say the same."""
    who, why = _tell(world, rank, "")
    said = f"stopped: {why}" if why else f"died or hangs: nothing came from it (a process waits {world.timeout:g} s)"
    raise LostRank(
        f"rank {who} of {world.size} {said}. Rank {world.rank} ends too; what was recorded stands, and the same "
        "command goes on from there"
    ) from error


def _tell(world: World, rank: int, why: str) -> tuple[int, str]:
    """Says that a rank is lost, unless another is already; which it is, and why, if that is known."""
    with suppress(RuntimeError):  # the store's own process may be what is lost
        if why:
            world.store.set(f"why/{rank}", why)
        rank = int(world.store.compare_set("lost", "", str(rank)))
        why = world.store.get(f"why/{rank}").decode() if world.store.check([f"why/{rank}"]) else ""
    return rank, why
