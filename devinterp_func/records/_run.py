"""An opened run: what made it, its record, and its steps replayed.

This is the only place where a run's model is built again and where threads, device and versions are held against those
of the recording.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from devinterp_func import batches, models, training
from devinterp_func.graph import Graph, fingerprint, in_order
from devinterp_func.models import Model
from devinterp_func.optim import State
from devinterp_func.records._dataset import Dataset
from devinterp_func.records._directory import n_steps, snapshots
from devinterp_func.records._machine import differences, is_missing, on_device
from devinterp_func.records._record_step import Recording
from devinterp_func.records._sealed import RecordError
from devinterp_func.records._snapshot import read_snapshot, require_snapshot
from devinterp_func.records._step import StepRecord
from devinterp_func.records._store import read_params, scan, scan_shards
from devinterp_func.records._traced import traced
from devinterp_func.text import Corpus
from devinterp_func.training import Move, Recipe
from devinterp_func.tree import Params
from devinterp_func.units import Patterns


class Curve(NamedTuple):
    """A run's training, step by step."""

    loss: Float[Tensor, "T"]  # mean over the batch, nats
    clip: Float[Tensor, "T"]
    grad_norm: Float[Tensor, "T"]
    missed: Float[Tensor, "T"]  # how far a captured unit misses the law, the largest; NaN where not measured
    missed_bound: Float[Tensor, "T"]  # the largest bound of these

    def __repr__(self) -> str:
        return f"Curve of {len(self.loss)} steps: loss {self.loss[0]:.4f} to {self.loss[-1]:.4f}"


@dataclass(frozen=True, eq=False)
class Run:
    """An opened run; every function that takes a run's path takes it, too."""

    path: Path
    manifest: dict[str, Any]  # what the run says it is, with its own digest
    recipe: Recipe
    recording: Recording
    dataset: Dataset
    shapes: dict[str, tuple[int, ...]]  # of the captured units, in the order that numbers their parameters
    device: str  # that its steps are replayed on
    anywhere: bool = False  # replay with other versions and on other processors too
    given: Model | None = None  # the model, where the caller gave it

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        name = self.manifest["model"]["name"]
        return f"Run({self.path}: {self.n_steps:,} steps of {self.recipe.batch_size} of {self.dataset}, {name})"

    @cached_property
    def model(self) -> Model:
        """What made the run: built again from the manifest, or what the caller gave to ``open``.

        Raises:
            RecordError: the manifest does not say enough, and none was given.
        """
        if self.given is not None:
            return self.given
        try:
            return models.build(self.manifest["model"])
        except (ValueError, ImportError) as error:
            raise RecordError(f"{self}: {error}; records.open(run, model=...) takes it") from error

    @cached_property
    def graph(self) -> Graph:
        """The loss of one example, written down.

        Raises:
            RecordError: as ``model``, or the model computes something else than the run's did.
        """
        some = read_params(self.path, min(self.snapshots))
        graph = traced(self.model, some, self.dataset, self.device)
        if not self.anywhere and fingerprint(graph) != self.manifest["model"]["graph"]:
            raise RecordError(
                f"{self}: the model does not compute what the run's did (its graph differs); records.open takes the "
                "right one as model=..., and anywhere=True tries this one all the same"
            )
        return graph

    @property
    def data(self) -> Any:
        """The training data, which the record's datum ids number."""
        return self.dataset.train

    @property
    def n_data(self) -> int:
        """N, how many training data there are."""
        return batches.n_data(self.data)

    @property
    def is_text(self) -> bool:
        """Whether the data are cut from a text."""
        return self.dataset.corpus is not None

    @property
    def corpus(self) -> Corpus:
        """The text that the data are cut from.

        Raises:
            RecordError: they are cut from none.
        """
        if self.dataset.corpus is None:
            raise RecordError(f"{self} has no text: its data are tensors, which have no words")
        return self.dataset.corpus

    @property
    def n_steps(self) -> int:
        """Steps recorded so far."""
        return n_steps(self.path)

    @property
    def snapshots(self) -> list[int]:
        """The steps whose weights are stored, in order."""
        return snapshots(self.path)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch."""
        return training.steps_per_epoch(self.recipe, self.n_data)

    def split(self, name: Literal["train", "valid", "test"]) -> Any:
        """The data of a part.

        Raises:
            RecordError: the run has no such data.
        """
        found = self.dataset.split(name)
        if found is None:
            raise RecordError(f"{self} has no {name} data; it has {', '.join(self.dataset.sizes())}")
        return found

    def params(self, step: int | None = None) -> Params:
        """The weights before a step, on the run's device: a snapshot, or replayed from the one before.

        Args:
            step: any recorded step, or the one after the last; None for the last snapshot.

        Raises:
            RecordError: there are no such weights, or as ``moves``.
        """
        at = self._at(step)
        if at in self.snapshots:
            self._require_device()
            return on_device(in_order(self.graph, read_params(self.path, at)), self.device)
        return self._led_to(at).after

    def state(self, step: int | None = None) -> State:
        """What the optimizer remembers before a step, on the run's device: of a snapshot, or replayed as ``params``.

        Args:
            step: as of ``params``.

        Raises:
            RecordError: as ``params``.
        """
        at = self._at(step)
        if at in self.snapshots:
            self._require_device()
            _, state = read_snapshot(self.path, self.recipe.optimizer, at, self.device)
            return state._replace(buffers={name: state.buffers[name] for name in self.graph.shapes})
        return self._led_to(at).state

    def _at(self, step: int | None) -> int:
        return max(self.snapshots) if step is None else step

    def _led_to(self, step: int) -> Move:
        """The step before ``step``, replayed."""
        if not 0 <= step <= self.n_steps:
            raise RecordError(f"{self} has no weights before step {step}; it has {self.n_steps} recorded steps")
        *_, last = self.moves(step - 1, step)
        return last

    def steps(self, start: int = 0, stop: int | None = None) -> Iterator[StepRecord]:
        """The records of steps start to stop − 1, as ``records.scan``."""
        return scan(self.path, start, stop)

    def curve(self) -> Curve:
        """Loss, clip coefficient and gradient norm of every recorded step, and how far it misses the law."""
        columns = [
            (
                shard.loss.double().mean(1),
                shard.clip.clone(),
                shard.grad_norm.clone(),
                shard.missed.double().amax(1),
                shard.missed_bound.double().amax(1),
            )
            for shard in self.shards()
        ]
        return Curve(*(torch.cat(column) for column in zip(*columns, strict=True)))

    def shards(self) -> Iterator[Any]:
        """The run's shards in order, as ``records.scan_shards``."""
        return scan_shards(self.path)

    def span(self, start: int = 0, stop: int | None = None) -> tuple[int, int]:
        """The steps start to stop − 1, ``stop`` being by default as far as the run is recorded.

        Raises:
            ValueError: the run does not have them.
        """
        recorded = self.n_steps
        stop = recorded if stop is None else stop
        if not 0 <= start < stop <= recorded:
            raise ValueError(f"steps {start} to {stop} were asked for; {self} has {recorded} recorded steps")
        return start, stop

    def moves(
        self,
        start: int = 0,
        stop: int | None = None,
        captured: Patterns | None = None,
        origin: tuple[Params, State] | None = None,
    ) -> Iterator[Move]:
        """The steps start to stop − 1 replayed, bit for bit, from the snapshot at or before ``start``.

        The weights are compared with every snapshot passed, those on the way to ``start`` included.

        Args:
            start, stop: steps; ``stop`` is by default as far as the run is recorded.
            captured: the units whose factors the moves carry, as patterns; by default the run's own.
            origin: weights and state before ``start``, where they are known: no step before it is replayed then.

        Raises:
            ValueError: the run does not have these steps, or a pattern matches nothing.
            RecordError: this process would not make the same bits, weights differ from a snapshot's, a file is damaged.
        """
        start, stop = self.span(start, stop)
        self.require_same_machine()
        known = self.snapshots
        at = max((step for step in known if step <= start), default=None) if origin is None else start
        if at is None:
            raise RecordError(f"{self} has no snapshot at or before step {start}; its first is before {known[:1]}")
        units = self.recording.units if captured is None else captured
        if origin is None:
            origin = read_snapshot(self.path, self.recipe.optimizer, at, self.device)
        params, state = origin
        steps = training.moves(
            self.graph, params, self.data, self.recipe, state=state, captured=units, start=at, stop=stop
        )
        del origin, params, state  # three times the weights, which nothing needs after the first step
        for move in steps:
            if move.step + 1 in known:
                require_snapshot(self.path, self.recipe.optimizer, move.step + 1, move.after, move.state)
            if move.step >= start:
                yield move
            del move  # nor does anything need this one while the next is made

    def require_same_machine(self) -> None:
        """Refuses where replayed steps would have other bits than the recorded ones.

        Raises:
            RecordError: threads, versions, processor or device are not the run's; each is named with its remedy.
        """
        self._require_device()
        if wrong := differences(self.manifest, self.device, self.anywhere):
            hint = "records.open(run, anywhere=True) tries all the same; snapshots passed on the way are still compared"
            raise RecordError("\n  ".join([f"{self} cannot be replayed bit for bit in this process:", *wrong, hint]))

    def _require_device(self) -> None:
        if is_missing(self.device):
            raise RecordError(
                f"{self} was made on {self.device!r}, and there is no such device here; "
                "records.open(run, anywhere=True) replays it on the CPU, where bits may differ"
            )
