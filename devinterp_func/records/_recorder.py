"""Training written to a run directory, resumable after a kill at any moment with the same bits."""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch

from devinterp_func import batches, checks, per_example, text, training, tree, units
from devinterp_func import graph as graphs
from devinterp_func.graph import Graph
from devinterp_func.models import Model
from devinterp_func.optim import State
from devinterp_func.records._card import make_reproducible, require_workspace
from devinterp_func.records._dataset import Dataset, dataset, pack_data
from devinterp_func.records._described import describe
from devinterp_func.records._directory import file_path, lock, n_steps, snapshots
from devinterp_func.records._going_on import HELD_FACTORS, Due, Progress, go_on
from devinterp_func.records._machine import is_missing, on_device
from devinterp_func.records._manifest import RunPath, create, is_there
from devinterp_func.records._record_step import Recording
from devinterp_func.records._snapshot import read_snapshot, write_snapshot
from devinterp_func.records._store import write_data
from devinterp_func.records._traced import traced
from devinterp_func.training import ALONE, Recipe, World
from devinterp_func.tree import Params

WRONG = 0.02  # of a unit's gradient; rounding misses far less
ROUGH = 0.25  # the same in bfloat16: 64 of its roundings, of some that differ between a batch and one example, each 2⁻⁸


def record(
    run: RunPath,
    data: Any,
    model: Model,
    recipe: Recipe,
    recording: Recording = Recording(),  # noqa: B008  (immutable)
    *,
    device: str = "cpu",
    check_law: bool = False,
    world: World = ALONE,
    held_factors: float = HELD_FACTORS,
) -> Iterator[Progress]:
    """Trains and writes the run directory, or goes on with the one that is there; yields after every step.

    Killed at any moment and called again with the same arguments it leaves the same tensors, bit for bit (same machine,
    versions, threads and device, all held in the manifest). Steps replayed after a resume are compared with what is
    recorded. Files are written beside the steps that follow: all of them are there when the last step is yielded, or
    when the generator is closed.

    Args:
        run: the directory: new, or of this very run.
        data: a text (``text.Corpus``), which is cut into data of ``recipe.context`` tokens; or tensors with a leading
            N, an example of which is what the loss takes; or both training and other data (``records.Dataset``).
        model: of ``models``.
        recipe: how it is trained.
        recording: what is recorded of it.
        device: "cpu" or a CUDA device, whose kernels are set to be deterministic (``_card.py`` says what that costs).
        check_law: form all deltas once more at each step and measure how far their sum misses the update.
        world: of ``training.joined``: the processes that share each batch, all with the same arguments and a file
            system that each sees. Rank 0 alone writes.
        held_factors: bytes of factors that a process holds for a step of several micro-batches; where there would be
            more, they are captured once more, micro-batch by micro-batch, after the update. The record is the same.

    Raises:
        ValueError: data, model, recipe and recording do not fit each other; said before anything is written.
        RecordError: the directory is another run's, is in use, cannot be written, or re-derives to other bits.
        FloatingPointError: a gradient is NaN or infinite; what was recorded before is kept.
        LostRank: another process died, hangs or stopped; it is named.
    """
    if world.size not in (1, recipe.processes):
        raise ValueError(f"{world.size} processes share the work; the recipe's batches are of {recipe.processes}")
    prepared = _prepare(run, data, model, recipe, recording, device)
    _require_right(prepared, device)
    with ExitStack() as held:
        start, recorded = training.share(world, lambda: _begin(run, prepared, recipe, held))
        params, state = read_snapshot(run, recipe.optimizer, start, device)
        due = Due(run, prepared.graph, prepared.data, recipe, recording)
        yield from go_on(due, params, state, start, recorded, check_law, world, held_factors)


def _begin(run: RunPath, prepared: "_Prepared", recipe: Recipe, held: ExitStack) -> tuple[int, int]:
    """Makes the directory, or finds it: the last snapshot's step, and how many steps are recorded."""
    create(run, prepared.manifest)
    held.enter_context(lock(run))
    if not file_path(run, "data", 0).exists():
        write_data(run, pack_data(prepared.data))
    if not snapshots(run):
        write_snapshot(run, recipe.optimizer, 0, prepared.params, prepared.state)
    return max(snapshots(run)), n_steps(run)


def prepare(
    run: RunPath,
    data: Any,
    model: Model,
    recipe: Recipe,
    recording: Recording = Recording(),  # noqa: B008  (immutable)
    device: str = "cpu",
) -> dict[str, Any]:
    """The manifest of a run to be; refuses before any work what ``record`` would refuse.

    Args:
        run, data, model, recipe, recording, device: as for ``record``; nothing is written.

    Raises:
        RuntimeError: within torch's inference mode, or there is no such device.
        ValueError: data, model, recipe and recording do not fit each other; what does not is named, with what would.
        RecordError: the directory is another run's, or holds something else.
    """
    return _prepare(run, data, model, recipe, recording, device).manifest


class _Prepared(NamedTuple):
    manifest: dict[str, Any]
    graph: Graph
    data: Dataset
    params: Params  # before step 0
    state: State


def _prepare(run: RunPath, data: Any, model: Model, recipe: Recipe, recording: Recording, device: str) -> _Prepared:
    checks.gradients_allowed()
    _require_device(device)
    make_reproducible(device)
    require_workspace(device)
    cut = dataset(data, recipe)
    params = training.initial(model, recipe)
    graph = traced(model, params, cut, device)
    _require_fit(cut, graph, recipe, recording)
    if recipe.processes > 1:
        training.check_exchange(params)
    state = recipe.optimizer.init(params)  # an error before the work where it does not fit the parameters
    manifest = describe(cut, model, graph, recipe, recording, device)
    is_there(run, manifest)
    return _Prepared(manifest, graph, cut, params, state)


def _require_right(prepared: _Prepared, device: str) -> None:
    """Holds capture against autograd on the first two data, so that no wrong gradient is ever recorded.

    In bfloat16 the two round differently, and a ReLU may fall to its other side: there a gradient is compared as far as
    that allows. What is wrong under vmap is so in any precision; so the same loss is compared without its casts, too.
    """
    few = tree.map(lambda x: x[:2].to(device), tuple(prepared.data.train))
    graph, params = prepared.graph, on_device(prepared.params, device)
    compared = [(graph, ROUGH if graph.rounded else WRONG)]
    if graph.rounded and hasattr(graph.loss, "unrounded"):
        compared.append((graphs.unrounded(graph), WRONG))
    for own, most in compared:
        _require_close(per_example.capture_missed(own, params, *few), most)


def _require_close(missed: dict[str, float], most: float) -> None:
    if wrong := {name: miss for name, miss in missed.items() if not miss <= most}:
        name, miss = max(wrong.items(), key=lambda pair: pair[1])
        raise ValueError(
            f"capture misses the gradient of {name!r} by {miss:.1e} of it: some operation of this loss comes out wrong "
            "under torch's vmap; write it with other operations (per_example.capture_missed measures it)"
        )


def _require_device(device: str) -> None:
    if not isinstance(device, str) or not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ValueError(f"device is {device!r}; it must be 'cpu', 'cuda', or one such as 'cuda:0'")
    if is_missing(device):
        raise RuntimeError(
            f"device is {device!r}; torch finds {torch.cuda.device_count()} CUDA devices here: use 'cpu'"
        )


def _require_fit(data: Dataset, graph: Graph, recipe: Recipe, recording: Recording) -> None:
    corpus = data.corpus
    if corpus is not None and graph.head is not None and graph.vocab_size != len(corpus.vocab):
        raise ValueError(
            f"the model has {graph.vocab_size} words, but {corpus.name!r} has {len(corpus.vocab)} types; they must "
            "agree"
        )
    for name in data.sizes():
        try:
            graphs.check_batch(graph, tuple(data.split(name)))
        except ValueError as error:
            raise ValueError(f"the {name} part of {data.name!r}: {error}") from error
    training.total_steps(recipe, batches.n_data(data.train))  # says what batch sizes there are
    captured = {name: graph.shapes[name] for name in graphs.choose(graph, recording.units)}
    if recording.k > (P := units.n_parameters(captured)):
        raise ValueError(f"k is {recording.k}; it must be between 1 and the {P} captured parameters")
    if corpus is not None and text.unpack(corpus.name, text.pack(corpus)).vocab != corpus.vocab:
        raise ValueError(
            f"the vocabulary of {corpus.name!r} does not survive being stored; some token is no valid text"
        )
