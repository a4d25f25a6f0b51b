"""Training as a generator: ``steps`` yields (params, StepRecord) and writes nothing; ``replay`` re-derives a step.

Everything about step t follows from the weights before it and (recipe, t): the data from ``batches.schedule``, the
dropout masks from (seed, epoch, datum). So a killed run resumes from its last snapshot with the same bits, and any
step's complete deltas are there again from the nearest snapshot.
"""

import dataclasses
import math
import platform
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from devinterp_func import batches, keys, outliers, per_example, records, sgd, text, transformer, tree
from devinterp_func.batches import Data
from devinterp_func.outliers import Per
from devinterp_func.per_example import Capture, Factor, Units
from devinterp_func.records import StepRecord
from devinterp_func.rundir import Run
from devinterp_func.sgd import StepInfo
from devinterp_func.steprecord import stack
from devinterp_func.text import Corpus
from devinterp_func.transformer import Config
from devinterp_func.tree import Params

DELTAS_AT_ONCE = 2**26  # bytes of deltas formed before their outliers are taken


@dataclass(frozen=True)
class Recipe:
    """All that fixes a run besides model and text; defaults are the post's."""

    context: int = 35
    batch_size: int = 20
    epochs: int = 5
    lr: float = 5.0
    gamma: float = 0.9  # the rate's factor after each epoch (the post's published code: 0.95)
    max_norm: float = 0.5
    seed: int = 0
    k: int = 1000
    per: Per = "datum"
    units: tuple[str, ...] = ()  # name patterns such as "layers.*.weight"; () is every 2-D weight of the layers
    factors: bool = False  # record the factors too
    n_steps: int | None = None  # stop there, if that is before the last epoch's end
    snapshot_every: int = 488  # six times an epoch of the post

    def __post_init__(self) -> None:
        for name in ("context", "batch_size", "epochs", "k", "snapshot_every", "n_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        for name in ("lr", "gamma", "max_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")


class Move(NamedTuple):
    """One step as it was made: the weights around it and the factors of every datum's delta."""

    step: int
    epoch: int
    batch: int
    datum: Int[Tensor, "n"]
    losses: Float[Tensor, "n"]
    info: StepInfo
    before: Params
    after: Params
    factors: dict[str, Factor]  # of deltas: scaled by −lr · c / n

    def __repr__(self) -> str:
        return f"Move(step={self.step}, loss={self.losses.mean():.4f}, {self.info})"


class Replay(NamedTuple):
    """A step re-derived: its record as it would be written, the weights around it, and every entry of its deltas."""

    record: StepRecord
    before: Params
    after: Params
    deltas: dict[str, Float[Tensor, "n ..."]]
    residual: dict[str, float]  # of the law, per unit

    def __repr__(self) -> str:
        worst = max(self.residual.values())
        return f"Replay of {self.record}: deltas of {len(self.deltas)} units, law's residual at most {worst:.1e}"


class Curve(NamedTuple):
    """A run's training, step by step."""

    loss: Float[Tensor, "T"]  # mean over the batch, nats
    clip: Float[Tensor, "T"]
    grad_norm: Float[Tensor, "T"]

    def __repr__(self) -> str:
        return f"Curve of {len(self.loss)} steps: loss {self.loss[0]:.4f} to {self.loss[-1]:.4f}"


def schedule_length(recipe: Recipe, n_data: int) -> int:
    """Steps of the whole run: epochs of full batches, or ``n_steps`` if fewer."""
    whole = recipe.epochs * batches.n_batches(n_data, recipe.batch_size)
    return whole if recipe.n_steps is None else min(whole, recipe.n_steps)


def epoch_length(corpus: Corpus, recipe: Recipe) -> int:
    """Steps of an epoch."""
    return batches.n_batches((len(corpus.train) - 1) // recipe.context, recipe.batch_size)


def order(recipe: Recipe, n_data: int, start: int, stop: int) -> Iterator[tuple[int, int, int, Int[Tensor, "n"]]]:
    """Each step from start on, its epoch, its batch in the epoch, and the ids of the batch's data."""
    per_epoch = batches.n_batches(n_data, recipe.batch_size)
    for step in range(start, stop):
        epoch, batch = divmod(step, per_epoch)
        if step == start or batch == 0:
            ids = batches.schedule(n_data, recipe.batch_size, epoch=epoch, key=keys.Key(recipe.seed))
        yield step, epoch, batch, ids[batch]


def units_of(recipe: Recipe) -> Units:
    """The recipe's choice of captured units as a predicate on names."""
    if not recipe.units:
        return per_example.default_units
    return lambda name: any(fnmatchcase(name, pattern) for pattern in recipe.units)


def initial(config: Config, recipe: Recipe) -> Params:
    """The weights before step 0."""
    return transformer.init(config, key=keys.fold_in(recipe.seed, "init"))


def masks_of(config: Config, recipe: Recipe, epoch: int, datum: Int[Tensor, "n"]) -> transformer.Masks | None:
    """Dropout masks of some data in an epoch, stacked: each a function of (seed, epoch, datum id) alone."""
    if config.dropout == 0:
        return None
    key = keys.fold_in(recipe.seed, "dropout", epoch)
    each = [keys.fold_in(key, j) for j in datum.tolist()]
    return transformer.stacked_dropout_masks(config, recipe.context, each=each)


def moves(
    params: Params,
    data: Data,
    config: Config,
    recipe: Recipe,
    *,
    start: int = 0,
    stop: int | None = None,
    removed: Bool[Tensor, "S n"] | None = None,
) -> Iterator[Move]:
    """The steps start to stop − 1 from the weights before ``start``, each with the factors of its deltas.

    With ``removed``, the steps without some of their data: g = (1/n) Σ_j g_j is the sum over those that are left, its
    divisor still the batch size n, and what it is clipped by follows from it. A step without data is not made.

    Args:
        params: weights before step ``start``, on the device to work on.
        data: the training data; ``datum`` ids are its rows.
        config, recipe: model and recipe.
        start, stop: steps; ``stop`` defaults to the end of the schedule.
        removed: of each step from ``start`` on, which places of its batch are left out; none by default.

    Raises:
        ValueError: if params are not those of config, or ``removed`` is not of these steps.
        FloatingPointError: if a gradient is NaN or infinite; step, unit and datum are named.
    """
    params = transformer.in_order(params, config)
    units, device = units_of(recipe), params["decoder.weight"].device
    buffer = params["decoder.bias"].new_empty(config.vocab_size, recipe.batch_size * recipe.context)
    stop = schedule_length(recipe, len(data.tokens)) if stop is None else stop
    if removed is not None and removed.shape != (stop - start, recipe.batch_size):
        wanted = (stop - start, recipe.batch_size)
        raise ValueError(f"removed is {tuple(removed.shape)}; of steps {start} to {stop} it must be {wanted}")
    for step, epoch, batch, ids in order(recipe, len(data.tokens), start, stop):
        datum = ids if removed is None else ids[~removed[step - start]]
        if not len(datum):
            continue
        masks = masks_of(config, recipe, epoch, datum)
        tokens, targets = (x[datum].to(device) for x in data)
        masks = None if masks is None else {site: mask.to(device) for site, mask in masks.items()}
        scratch = buffer.flatten()[: len(buffer) * tokens.numel()].view(len(buffer), -1)
        captured = per_example.capture(params, tokens, targets, config, masks, units, scratch)
        mean_grads = captured.mean_grads
        if len(datum) < recipe.batch_size:
            mean_grads = tree.scale(mean_grads, len(datum) / recipe.batch_size)
        lr = sgd.learning_rate(epoch, recipe.lr, recipe.gamma)
        after, info = sgd.update(params, mean_grads, lr=lr, max_norm=recipe.max_norm)
        if not math.isfinite(info.grad_norm):
            raise FloatingPointError(blame(step, datum, captured))
        factors = per_example.scale(captured.factors, sgd.share(info, recipe.batch_size))
        yield Move(step, epoch, batch, datum, captured.losses, info, params, after, factors)
        params = after


def steps(
    params: Params, data: Data, config: Config, recipe: Recipe, *, start: int = 0, stop: int | None = None
) -> Iterator[tuple[Params, StepRecord]]:
    """Trains from the weights before ``start``; yields the weights after each step and its record, writes nothing.

    Args, Raises: as ``moves``.
    """
    buffer = None
    for move in moves(params, data, config, recipe, start=start, stop=stop):
        buffer = delta_buffer(move.factors) if buffer is None else buffer
        yield move.after, to_record(move, recipe, buffer)


def delta_buffer(factors: dict[str, Factor]) -> Float[Tensor, "m P"]:
    """Scratch for the deltas of as many of the n data at once as is reasonable."""
    row = outliers.workspace(factors, 1)
    n = len(next(iter(factors.values())).signals)
    return row.new_zeros(max(1, min(n, DELTAS_AT_ONCE // row.nbytes)), row.shape[1])


def to_record(move: Move, recipe: Recipe, buffer: Float[Tensor, "m P"]) -> StepRecord:
    """The record of a step: its outliers, and its factors where the recipe wants them, in main memory."""
    found = outliers.from_factors(move.factors, recipe.k, recipe.per, buffer)
    narrow = torch.uint8 if recipe.context <= 256 else torch.int16
    found = found._replace(
        parameter=found.parameter.int(), position=found.position.to(narrow), datum=found.datum.to(torch.int16)
    )
    kept = {unit: _tensors(factor) for unit, factor in move.factors.items()} if recipe.factors else {}
    lr, clip, grad_norm = (float(value) for value in move.info)
    host = tree.map(lambda x: x.cpu(), (move.datum, move.losses, found, kept))
    return StepRecord(move.step, move.epoch, move.batch, lr, clip, grad_norm, *host)


@torch.no_grad()
def evaluate(params: Params, stream: Int[Tensor, "T"], config: Config, recipe: Recipe) -> float:
    """Mean loss in nats a token over a token stream, without dropout; its exponential is the perplexity."""
    device = params["decoder.weight"].device
    data = batches.chunk(stream, recipe.context)
    buffer = params["decoder.bias"].new_empty(config.vocab_size, recipe.batch_size * recipe.context)
    total = 0.0
    for start in range(0, len(data.tokens), recipe.batch_size):
        tokens, targets = (x[start : start + recipe.batch_size].to(device) for x in data)
        whole = len(tokens) == recipe.batch_size
        losses = per_example.losses(params, tokens, targets, config, buffer if whole else None)
        total += float(losses.sum(dtype=torch.float64))
    return total / data.tokens.numel()


def replay(run: Run, step: int, units: Units | None = None) -> Replay:
    """Re-derives a recorded step from the nearest snapshot before it: every entry of every captured delta.

    On the machine, versions and thread count of the manifest the outliers come out bit for bit as recorded.

    Args:
        run: a run directory.
        step: a recorded step.
        units: capture other units than the run did; the record is then taken from these.

    Raises:
        RecordError: the step is not recorded, or a file is damaged.
    """
    records.read(run, step)  # a clear error before the work
    config, recipe, corpus = load(run)
    start = max(snapshot for snapshot in records.snapshots(run) if snapshot <= step)
    recipe = (
        recipe
        if units is None
        else dataclasses.replace(recipe, units=tuple(per_example.choose(transformer.shapes(config), units)))
    )
    params = records.read_params(run, start)
    data = batches.chunk(corpus.train, recipe.context)
    # Only the last is kept: a move holds the weights and all factors.
    move = deque(moves(params, data, config, recipe, start=start, stop=step + 1), maxlen=1).pop()
    deltas = outliers.form_units(move.factors)
    residual = sgd.residual(move.before, move.after, deltas)
    return Replay(to_record(move, recipe, delta_buffer(move.factors)), move.before, move.after, deltas, residual)


def manifest(corpus: Corpus, config: Config, recipe: Recipe, device: str = "cpu") -> dict[str, Any]:
    """What a run directory says it is: all that its bits depend on."""
    shapes = transformer.shapes(config)
    sizes = {split: len(getattr(corpus, split)) for split in ("train", "valid", "test")}
    packages = ("devinterp_func", "numpy", "safetensors", "torch", "torchtext")
    return {
        "config": dataclasses.asdict(config),
        "recipe": dataclasses.asdict(recipe) | {"units": list(recipe.units)},
        "n_steps": schedule_length(recipe, (sizes["train"] - 1) // recipe.context),
        "units": [[name, list(shapes[name])] for name in per_example.choose(shapes, units_of(recipe))],
        "corpus": {"name": corpus.name, "fingerprint": text.fingerprint(corpus), **sizes},
        "device": device,
        "threads": torch.get_num_threads(),
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
    }


def shapes(run: Run) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a run's captured units, in the order that numbers their parameters."""
    return {name: tuple(shape) for name, shape in records.manifest(run)["units"]}


def load(run: Run) -> tuple[Config, Recipe, Corpus]:
    """Model, recipe and text of a run directory.

    Raises:
        RecordError: there is no run, or it is damaged.
    """
    body = records.manifest(run)
    recipe = Recipe(**body["recipe"] | {"units": tuple(body["recipe"]["units"])})
    return Config(**body["config"]), recipe, text.unpack(body["corpus"]["name"], records.read_corpus(run))


def curve(run: Run) -> Curve:
    """Loss, clip coefficient and gradient norm of every recorded step."""
    parts = [
        (shard.loss.double().mean(1), shard.clip.clone(), shard.grad_norm.clone()) for shard in records.scan_shards(run)
    ]
    return Curve(*(torch.cat(column) for column in zip(*parts, strict=True)))


def same_bits(a: StepRecord, b: StepRecord) -> bool:
    """Whether two records agree in every bit."""
    ours, theirs = stack([a]), stack([b])
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def blame(step: int, datum: Int[Tensor, "n"], captured: Capture) -> str:
    """Says which unit and datum made a step's gradient NaN or infinite."""
    unit = next((name for name, g in captured.mean_grads.items() if not torch.isfinite(g).all()), "their sum")
    bad = ~torch.isfinite(captured.losses)
    for factor in captured.factors.values():
        bad |= ~torch.isfinite(factor.signals.flatten(1)).all(1)
    culprits = datum[bad.cpu()].tolist() or datum.tolist()
    return (
        f"step {step}: the gradient of {unit} is NaN or infinite, through datum {', '.join(map(str, culprits))}. "
        "Nothing of this step is recorded and the last snapshot stands; a smaller learning rate may help"
    )


def _tensors(factor: Factor) -> dict[str, Tensor]:
    return {name: value for name, value in factor._asdict().items() if isinstance(value, Tensor)}
