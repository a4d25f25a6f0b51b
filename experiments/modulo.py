"""Grokking, split exactly: what made a transformer that adds modulo p right about pairs that it has not seen?

    python experiments/modulo.py --run runs/modulo --out runs/modulo-results   # some ten minutes, no download
    python experiments/modulo.py --run runs/tiny-sums --p 7 --share 0.6 --steps 40 --width 8 --hidden 16 --timed 0

Full batches and AdamW: memorised first, understood long after. Each step is replayed, and the change of the log odds
of held-out sums is split over what the step's data did, earlier gradients through the memory, and weight decay, by
group of units; the trained network's logits are put together again from all steps by several quadratures; and a walk
back splits single held-out pairs' log odds over the training pairs. In the words of Eichin et al. 2025 (arXiv
2505.20076) present and past are the kernel's part, decay is the regularisation's. Interrupted, the same command goes
on.
"""

from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import modulo_tables as tables
import modulo_task as tasks
import stage
import torch
from modulo_task import Adder, Measured, Task
from torch import Tensor
from torch.func import functional_call

from devinterp_func import checks, credit, optim, records, training, units
from devinterp_func.credit import Lifetimes
from devinterp_func.credit.probes import Probe
from devinterp_func.models import Model
from devinterp_func.optim import Schedule
from devinterp_func.records import Dataset, Recording, Run
from devinterp_func.show import results, terminal
from devinterp_func.show.schema import frame
from devinterp_func.training import Recipe


@dataclass(frozen=True)
class Settings:
    run: Path = Path("runs/modulo")  # the run directory: new, or one that the same command began
    out: Path | None = None  # where tables go; by default beside the run
    p: int = 41  # the modulus
    share: float = 0.5  # of all pairs to train on
    steps: int = 1500  # full batches
    width: int = 64
    heads: int = 4
    hidden: int = 128  # of the MLP
    scale: float = 0.125  # standard deviation of the embedding's first entries
    lr: float = 3e-3
    weight_decay: float = 1.0
    held_out: int = 100  # pairs unseen in both orders, at most
    singles: int = 8  # of them, each asked alone; 0 leaves the walk back out
    timed: int = 10  # steps whose cost is measured
    single: bool = False  # float32 in place of float64
    seed: int = 0  # of weights and pairs


def main(settings: Settings) -> Path:
    for name in ("p", "steps", "width", "heads", "hidden", "held_out"):
        checks.integer(f"--{name}", getattr(settings, name))
    checks.integer("--singles", settings.singles, least=0)
    if settings.width % settings.heads:
        raise ValueError(f"--width is {settings.width}; it must be a multiple of the {settings.heads} heads")
    task = tasks.task(settings.p, settings.share, settings.held_out, settings.seed)
    adder = adder_of(settings)
    run = trained(settings, task, tasks.model_of(adder))
    out = results.beside(run, settings.out)
    walks = run.path.with_name(f"{run.path.name}-walks")
    found = measured(run, walks, adder, task, settings)
    spans = tables.phases(found.right)
    rows = {
        "modulo_parts": tables.parts_rows(
            settings.seed, found, spans, [p.name for p in followed(adder, task, settings)]
        )
    }
    logits = functional_call(adder, run.params(run.n_steps), (task.held_out[0],)).detach()
    rows["modulo_rules"] = tables.rule_rows(settings.seed, found, logits, task.held_out[1])
    if settings.singles:
        lives, asked = lived(run, walks, adder, task, settings), task.held_out[0][: settings.singles]
        rows["modulo_data"] = tables.data_rows(settings.seed, lives, spans, task, asked)
    rows["modulo_costs"] = costs(run, adder, task, settings)
    for name, own in rows.items():
        kind = tables.TABLES[name]
        table = results.add_rows(out, name, kind, frame(kind, own))
        formats = {column: kind.columns[column].format or "" for column in table.columns if kind.columns[column].format}
        terminal.console().print(terminal.rich_table(table, kind.caption, 60, 40, formats))
    stage.say(f"modulo: in {out}")
    return out


# ---- the training


def adder_of(settings: Settings) -> Adder:
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        adder = Adder(settings.p, settings.width, settings.heads, settings.hidden, settings.scale)
    return adder if settings.single else adder.double()


def trained(settings: Settings, task: Task, model: Model) -> Run:
    """The recorded run."""
    recipe = Recipe(
        batch_size=len(task.train[1]),
        epochs=settings.steps,
        lr=settings.lr,
        schedule=Schedule(),
        optimizer=optim.adamw(betas=(0.9, 0.98), weight_decay=settings.weight_decay),
        max_norm=float("inf"),
        seed=settings.seed,
    )
    data = Dataset(task.train, name=f"sums modulo {task.p}")
    recording = Recording(k=1, per="step", units=("mlp.fall.bias",), snapshot_every=100)  # what is read is replayed
    for _ in terminal.watched(records.record(settings.run, data, model, recipe, recording), settings.steps, "training"):
        pass
    return records.open(settings.run, model=model)


def followed(adder: Adder, task: Task, settings: Settings) -> list[Probe]:
    """Mean log odds: of held-out pairs' sums, of wrong ones, and of as many training pairs' sums."""
    (tokens, total), n = task.held_out, len(task.held_out[1])
    return [
        tasks.margins(adder, tokens, total, "held-out"),
        tasks.margins(adder, tokens, tasks.wrong(total, task.p, settings.seed), "held-out, a wrong sum"),
        tasks.margins(adder, task.train[0][:n], task.train[1][:n], "trained"),
    ]


# ---- what is read off its steps


def measured(run: Run, folder: Path, adder: Adder, task: Task, settings: Settings) -> Measured:
    """All steps, forwards."""
    probes, what = followed(adder, task, settings), {"walk": "modulo", "held_out": settings.held_out}

    def look(move: training.Move, last: records.Last[Measured] | None) -> Measured:
        return tasks.measure(adder, task, probes, move, last)

    steps = records.walk(run, folder / "measured", what, (), look, Measured)
    for _ in terminal.watched(steps, run.n_steps, "measured"):
        pass
    return records.read_walk(folder / "measured", Measured)


def lived(run: Run, folder: Path, adder: Adder, task: Task, settings: Settings) -> Lifetimes:
    """All steps, backwards: the lifetimes of the training pairs, for each of some held-out pairs."""
    (tokens, total), n = task.held_out, settings.singles
    probes = [tasks.margins(adder, tokens[[i]], total[[i]], f"held-out pair {i}") for i in range(min(n, len(total)))]
    for _ in terminal.watched(credit.lifetime(run, folder / "lived", probes), run.n_steps, "lifetimes"):
        pass
    return records.read_walk(folder / "lived", Lifetimes)


def costs(run: Run, adder: Adder, task: Task, settings: Settings) -> list[dict[str, Any]]:
    """Rows of ``COSTS``: plain steps, the same with factors, and what a ledger of one probe adds."""
    if not settings.timed:
        return []
    probe, taken = followed(adder, task, settings)[0], dict[str, list[float]]()
    middle = max(0, run.n_steps // 2 - settings.timed)
    stop = min(run.n_steps, middle + settings.timed)
    plain_steps(run, adder, task, taken, stop - middle)
    start = perf_counter()
    for move in run.moves(middle, stop, captured=units.EVERY):
        taken.setdefault("step with all data's factors", []).append(perf_counter() - start)
        for m in (1, 2, 3):
            start = perf_counter()
            credit.split_change(move, [probe], m)
            taken.setdefault(f"ledger of a probe, {m} nodes, besides", []).append(perf_counter() - start)
        for rule in tasks.RULES:
            start = perf_counter()
            tasks.estimate(adder, task.held_out[0], move, rule)
            taken.setdefault(f"all logits by {rule.name}, besides", []).append(perf_counter() - start)
        start = perf_counter()
    plain = median(taken["plain step"])
    return [{"what": k, "seconds": median(v), "of a plain step": median(v) / plain} for k, v in taken.items()]


def plain_steps(run: Run, adder: Adder, task: Task, taken: dict[str, list[float]], n: int) -> None:
    """Times steps of torch's own on a copy of the network."""
    with torch.enable_grad():
        weights = {name: w.clone().requires_grad_() for name, w in run.params(0).items()}
        optimizer = torch.optim.AdamW(list(weights.values()), run.recipe.lr, (0.9, 0.98))
        for _ in range(n):
            start = perf_counter()
            loss: Tensor = torch.nn.functional.cross_entropy(
                functional_call(adder, weights, (task.train[0],)), task.train[1]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            taken.setdefault("plain step", []).append(perf_counter() - start)


if __name__ == "__main__":
    stage.run(main, Settings, __doc__)
