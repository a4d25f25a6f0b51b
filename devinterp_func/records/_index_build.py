"""Building a run's index: its outliers sorted by parameter, part by part, and what each step saw."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from devinterp_func import checks
from devinterp_func.records._directory import file_path, last_shard, lock, n_steps
from devinterp_func.records._index import KIND
from devinterp_func.records._manifest import RunPath, create
from devinterp_func.records._run import Run
from devinterp_func.records._sealed import Header, write_sealed
from devinterp_func.records._store import read, scan

PART = 10_000_000  # outliers of a part, about: what is sorted at once


def index(
    run: Run,
    folder: RunPath,
    groups: Mapping[str, Int64[Tensor, "P"]],
    most: int | None = None,
    part: int = PART,
) -> Iterator[int]:
    """Indexes a run beside it; goes on where the folder's index ends.

    Args:
        run: the run; only read.
        folder: new, or this very index's; not the run's own.
        groups: name -> each parameter's group, −1 for none, such as ``neurons.groups(run.shapes, axis).of``.
        most: of each group keep the outliers of so many visits a part, those of the largest Σ|Δ| on the group; an
            outlier that any grouping keeps is kept. None keeps all.
        part: outliers sorted at once, about; more of them take more memory and make fewer files.

    Yields:
        How many steps are indexed, after each.

    Raises:
        ValueError: an argument is out of range.
        RecordError: the folder is another index's, is in use, or a file is damaged.
    """
    checks.integer("part", part)
    if most is not None:
        checks.integer("most", most)
    n_parameters = sum(math.prod(shape) for shape in run.shapes.values())
    for name, of in groups.items():
        if of.shape != (n_parameters,):
            raise ValueError(f"grouping {name!r} has shape {list(of.shape)}; the run has {n_parameters} parameters")
    sizes = {name: int(of.max()) + 1 for name, of in groups.items()}
    about = {"index": KIND, "run": run.manifest["digest"], "most": most, "part": part, "groups": sizes}
    create(folder, about)
    with lock(folder):
        done, stop = n_steps(folder), run.n_steps
        records, length = [], part_steps(run, part)
        for record in scan(run, done, stop):
            records.append(record)
            done += 1
            if len(records) == length or done == stop:
                _write_part(folder, _indexed(records, groups, sizes, most))
                records = []
            yield done


def index_bytes(run: Run, groups: Mapping[str, Int64[Tensor, "P"]], most: int | None = None, part: int = PART) -> int:
    """How many bytes an index takes, headers aside: exactly where all is kept, at most so many else.

    Args:
        run, groups, most, part: as of ``index``.
    """
    outliers, rows, length = _outliers_a_step(run), run.recipe.batch_size, part_steps(run, part)
    fields = read(run, 0).outliers
    each = 8 + fields.delta.itemsize + fields.position.itemsize  # parameter and visit are int32
    counts = sum(int(of.max()) + 1 for of in groups.values()) * _count_type(outliers).itemsize
    kept = outliers * run.n_steps
    if most is not None:
        n_groups, n_parts = sum(int(of.max()) + 1 for of in groups.values()), -(-run.n_steps // length)
        kept = min(kept, n_parts * n_groups * most * run.recording.k)
    return kept * each + run.n_steps * (counts + rows * 16 + 48)


def part_steps(run: Run, part: int = PART) -> int:
    """How many steps a part has."""
    return max(1, part // _outliers_a_step(run))


def _outliers_a_step(run: Run) -> int:
    return run.recording.k * (run.recipe.batch_size if run.recording.per == "datum" else 1)


def _write_part(folder: RunPath, tensors: dict[str, Tensor]) -> None:
    last = last_shard(folder)
    first = last.step + last.count
    header = Header("steps", first, len(tensors["datum"]), last.run, last.digest)
    write_sealed(file_path(folder, "steps", first), header, tensors)


def _indexed(
    records: list[Any], groups: Mapping[str, Tensor], sizes: Mapping[str, int], most: int | None
) -> dict[str, Tensor]:
    """A part: the outliers of some steps by parameter, and what the steps saw."""
    n = len(records[0].datum)
    fields = [torch.stack([getattr(r.outliers, name) for r in records]) for name in ("parameter", "delta", "position")]
    rows = torch.stack([r.outliers.datum for r in records]).long()
    steps = torch.arange(len(records)).view(-1, *[1] * (rows.ndim - 1))
    visit = (steps * n + rows).flatten()
    parameter, delta, position = (field.flatten() for field in fields)
    amount = torch.zeros(len(records) * n).index_add_(0, visit, delta.abs().float()).view(-1, n)
    found = {"datum": torch.stack([r.datum for r in records]).contiguous(), "amount": amount}
    found["loss"] = torch.stack([r.loss.float() for r in records])
    found["along"] = torch.stack([r.split.along.double().sum(0) for r in records])
    for name in ("lr", "clip", "grad_norm"):
        found[name] = torch.tensor([getattr(r, name) for r in records], dtype=torch.float64)
    kind, keep = _count_type(visit.numel() // len(records)), None
    for name, of in groups.items():
        group = of[parameter.long()]
        found[f"count/{name}"] = _counts(group, visit // n, sizes[name], len(records)).to(kind)
        if most is not None:
            kept = _largest(group, visit, delta, most, len(records) * n)
            keep = kept if keep is None else keep | kept
    if keep is not None:
        parameter, delta, position, visit = (x[keep] for x in (parameter, delta, position, visit))
    order = torch.argsort(visit, stable=True) if rows.ndim == 2 else None  # of whole steps: rows are in no order
    if order is not None:
        parameter, delta, position, visit = (x[order] for x in (parameter, delta, position, visit))
    order = torch.argsort(parameter, stable=True)
    found |= {"parameter": parameter[order].int(), "visit": visit[order].int()}
    return found | {"delta": delta[order], "position": position[order]}


def _counts(group: Tensor, step: Tensor, n_groups: int, n_steps: int) -> Int64[Tensor, "G S"]:
    there = group >= 0
    flat = group[there] * n_steps + step[there]
    return torch.bincount(flat, minlength=n_groups * n_steps).view(n_groups, n_steps)


def _largest(group: Tensor, visit: Tensor, delta: Tensor, most: int, n_visits: int) -> Tensor:
    """Which outliers are of the ``most`` visits of largest Σ|Δ| on their group; earlier visits first in a tie."""
    pairs, inverse = (group * n_visits + visit).unique(return_inverse=True)
    amount = torch.zeros(len(pairs), dtype=torch.float64).index_add_(0, inverse, delta.abs().double())
    by_amount = torch.argsort(amount, descending=True, stable=True)
    owner = (pairs // n_visits)[by_amount]
    by_owner = torch.argsort(owner, stable=True)
    ordered = owner[by_owner]
    begins = torch.searchsorted(ordered, ordered)  # where each owner's pairs begin
    rank = torch.empty_like(pairs)
    rank[by_amount[by_owner]] = torch.arange(len(pairs)) - begins
    return (rank[inverse] < most) & (group >= 0)


def _count_type(outliers: int) -> torch.dtype:
    return torch.int16 if outliers < 2**15 else torch.int32
