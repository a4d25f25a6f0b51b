"""Train the language model and record what every datum did to every captured weight at every step.

    python experiments/capture.py                                                       # a minute or two, no download
    python experiments/capture.py --corpus wikitext2 --preset post --out runs/post      # the post's run: an hour or two
    python experiments/capture.py --model gpt2 --steps 100 --out runs/demo-gpt2         # another model
    python experiments/capture.py --optimizer sgd --steps 100 --out runs/demo-sgd       # another optimizer
    python experiments/capture.py --corpus wikitext2 --preset modern --out runs/modern  # the same with AdamW
    python experiments/capture.py --repeated 0.25 --steps 60 --out runs/demo-repeated   # texts that say things twice
    python experiments/capture.py --plan                                                # what it would take
    torchrun --nproc-per-node 2 experiments/capture.py --steps 100 --out runs/demo-2    # two processes share each batch

Interrupted or killed, the same command goes on where it stopped, and the run directory ends up the same, bit for bit.
"""

import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import plan
import stage
import torch
import tyro
from presets import PRESETS, Kind, model_of, training_of
from torch import Tensor

from devinterp_func import batches, checks, models, optim, per_example, records, text, training, units
from devinterp_func import graph as graphs
from devinterp_func.models import Config, Model
from devinterp_func.records import Recording, Run
from devinterp_func.show import terminal, words
from devinterp_func.text import Corpus
from devinterp_func.training import Recipe, World


@dataclass(frozen=True)
class Settings:
    """Options left at None take the preset's value."""

    corpus: str = "python_help"  # wikitext2, python_docs, python_help, planted, or the path of a UTF-8 text file
    repeated: float = 0.0  # share of all texts, also of held-out ones, that say their beginning again and again
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of linear maps, forwards and backwards; weights, gradients and the optimizer's step are float32 in any case."""
    tokenizer: str = "basic_english"  # or the path of a tokenizer.json, such as of experiments/tokenizer.py
    model: Kind = "post"  # the post's transformer, or one of Hugging Face's of the preset's sizes
    preset: Literal["demo", "post", "modern", "mini", "tiny"] = "demo"
    """A small model, five epochs in a minute or two; the post's 12.27 M parameters; the same with AdamW; for --model
    gpt2, four layers of width 256, trained with AdamW on texts of 128 tokens, or two of width 128 on texts of 64."""
    out: Path = Path("runs/demo")  # the run directory: new, or one that the same command began
    seed: int = 0  # fixes initial weights, order of the data and dropout
    context: int | None = None  # tokens a datum
    batch_size: int | None = None  # data a step
    micro_batch: int | None = None  # data that a process captures at once; default: all its share of a batch
    epochs: int | None = None  # passes over the training data
    steps: int | None = None  # stop after so many steps in all
    optimizer: Literal["sgd", "adam", "adamw", "muon"] | None = None
    """If another than the preset's, then with usual settings and, but for sgd, a cosine down to 0.1 after a warm-up."""
    momentum: float | None = None  # of sgd and muon
    nesterov: bool | None = None  # of sgd and muon
    betas: tuple[float, float] | None = None  # of adam and adamw, which muon leaves embedding, head and vectors to
    eps: float | None = None  # of adam and adamw
    weight_decay: float | None = None  # of matrices
    decay_all: bool = False  # ... and of biases and norms
    undecayed: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()  # pattern of other units without; repeatable
    lr: float | None = None
    """The learning rate at its highest. By default the preset's; another optimizer's is 0.001, sgd's 5, with Hugging
    Face's models 1; sgd with a momentum takes 1 - momentum of it."""
    schedule: Literal["constant", "step", "linear", "cosine"] | None = None  # how it goes on
    gamma: float | None = None  # step: its factor after each epoch
    warmup: int | None = None  # steps in which it rises
    end: float | None = None  # linear, cosine: the share of it that is left at the end
    max_norm: float | None = None  # gradients of a larger norm are clipped to it; inf clips none
    k: int | None = None  # outliers recorded for each datum, or each step
    per: Literal["datum", "step"] | None = None  # whether k counts for each datum, or for the step as a whole
    units: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Name pattern of captured units, such as 'layers.*.weight'; may be repeated. Default: the linear maps' weights."""
    factors: bool = False  # also record the factors of every datum's gradient (the post's model: 17 MB a step)
    snapshot_every: int | None = None  # steps between two snapshots of the weights; a replay starts from one
    device: str = "cpu"  # cpu, or cuda
    threads: int | None = None  # of the CPU; the same bits come out only for the same number; default: torch's choice
    plan: bool = False  # train and write nothing: say what the run would take, and what other settings would
    timeout: float = training.TIMEOUT  # under torchrun: seconds that a process waits for another
    check_law: bool = False  # at every step form all deltas again and measure how far their sum misses the update


def main(settings: Settings) -> None:
    if settings.threads is not None:
        torch.set_num_threads(checks.integer("threads", settings.threads))
    with training.joined(settings.device, settings.timeout) as world:
        capture(settings, world)


def capture(settings: Settings, world: World) -> None:
    """Trains and records; of several processes rank 0 alone says something."""
    corpus = text.load(settings.corpus, settings.tokenizer)
    sizes, recipe, recording = PRESETS[settings.preset]
    recipe = chosen(recipe, settings, n_steps=settings.steps, processes=world.size)
    recording = chosen(recording, settings)
    if settings.repeated:
        corpus = text.repeated(corpus, recipe.context, settings.repeated, key=0)  # of another seed's run the same
    model = model_of(settings.model, Config(len(corpus.vocab), **sizes), recipe.context)
    model = models.autocast(model) if settings.precision == "bfloat16" else model
    n_data = batches.n_data(batches.chunk(corpus.train, recipe.context))
    recipe = training_of(settings, recipe, model, training.total_steps(recipe, n_data))
    what = corpus, model, recipe, recording
    if settings.plan:
        return None if world.rank else say_plan(settings, *what, training.total_steps(recipe, n_data))
    n_steps = records.prepare(settings.out, *what, settings.device)["n_steps"]  # mistakes end here, before any work
    steps = records.record(settings.out, *what, device=settings.device, check_law=settings.check_law, world=world)
    if world.rank:
        for _ in steps:
            pass
        return
    before = max(records.snapshots(settings.out), default=0) if (settings.out / "params").is_dir() else 0
    say_plan(settings, *what, n_steps - before)
    worst, least, writing, began = 0.0, torch.tensor(torch.inf), 0.0, time.perf_counter()
    for now in terminal.watched(steps, n_steps, lambda now: f"loss {now.record.loss.mean():.3f}", first=before):
        worst, writing = max(worst, now.missed), now.writing
        least = torch.minimum(least, now.record.split.along.sum(-1))  # squared sizes of the units' changes
    seconds = time.perf_counter() - began
    stage.say(f"{seconds:.1f} s, of these {writing / seconds:.2%} waiting for the disk")
    run = records.open(settings.out)
    if settings.check_law and n_steps > before:
        stage.say(f"the law: the sum of present, past and decay misses the change by at most {worst:.1e} of it;")
        stage.say(f"rounding the weights alone, eps ‖w‖ / ‖w' − w‖, is up to {rounding(run, least):.1e} of it")
    summarise(run)


def chosen(preset: Any, settings: Settings, **renamed: Any) -> Any:
    """A preset with the options that were given."""
    given = vars(settings) | renamed
    own = {"optimizer", "schedule", "lr"}  # of training_of
    names = [name for name in vars(preset) if given.get(name) not in (None, ()) and name not in own]
    return replace(preset, **{name: given[name] for name in names})


def say_plan(
    settings: Settings, corpus: Corpus, model: Model, recipe: Recipe, recording: Recording, n_steps: int
) -> None:
    """Expected time and bytes of the steps to come, from three steps made for the purpose and thrown away.

    With ``--plan`` all that can be said of them, and of other settings.
    """
    data = records.dataset(corpus, recipe)
    params = {name: w.to(settings.device) for name, w in training.initial(model, recipe).items()}
    graph = graphs.of(model.loss, params, *(part[0].to(settings.device) for part in data.train))
    files = records.run_bytes(graph, recipe, recording, data, n_steps)
    captured = {name: graph.shapes[name] for name in graphs.choose(graph, recording.units)}
    P = units.n_parameters(graph.shapes)
    stage.say(f"{corpus}\n{model.name}: {P:,} parameters, {units.n_parameters(captured):,} captured")
    stage.say(words.training_words(vars(recipe) | plain(recipe)))
    if settings.plan:
        plan.say_sizes(graph, recipe, recording, files, n_steps)
    parts = training.shares(recipe)[0]
    own = replace(
        recipe, batch_size=parts[0].stop, processes=1, micro_batch=None
    )  # one micro-batch, as it may be large
    stop = min(3, training.total_steps(own, batches.n_data(data.train)))
    trial = training.moves(graph, params, data.train, own, captured=recording.units, stop=stop)
    buffer, ended = None, [time.perf_counter()]
    for move in trial:
        buffer = records.delta_buffer(move.factors) if buffer is None else buffer
        records.to_record(move, recording, buffer)
        ended.append(time.perf_counter())
    measured = ended[min(1, stop - 1) :]  # the first step warms up
    seconds = len(parts) * (measured[-1] - measured[0]) / (len(measured) - 1)
    free = shutil.disk_usage(next(p for p in settings.out.absolute().parents if p.exists())).free
    stage.say(f"{n_steps:,} steps of {recipe.batch_size} data: about {n_steps * seconds / 60:.1f} minutes,")
    stage.say(f"about {files.total / 1e9:.2f} GB in {settings.out}; {free / 1e9:.2f} GB are free there")


def plain(recipe: Recipe) -> dict[str, Any]:
    """Schedule and optimizer as a manifest holds them."""
    return {"schedule": asdict(recipe.schedule), "optimizer": optim.to_dict(recipe.optimizer)}


def rounding(run: Run, least: Tensor) -> float:
    """What rounding to the weights' precision is of the smallest change of a captured unit.

    Args:
        run: whose last weights' sizes are taken.
        least: of every unit, the smallest squared size of a change.
    """
    params = run.params()
    changes = dict(zip(params, least.sqrt().tolist(), strict=True))
    of = [(params[unit], changes[unit]) for unit in run.shapes if changes[unit]]
    return max((float(w.norm()) * torch.finfo(w.dtype).eps / change for w, change in of), default=0.0)


def summarise(run: Run) -> None:
    """Verifies the run and says what it holds, how training went, and what moved the weights most at the end."""
    stage.say(f"{run}: {records.verify(run)}")
    curve, console = run.curve(), terminal.console()
    rates = [training.learning_rate(run.recipe, run.n_data, step) for step in range(run.n_steps)]
    console.print(terminal.sparkline(curve.loss), terminal.loss_table(curve, records.read_evaluations(run), rates))
    measured = ~curve.missed.isnan()
    if measured.any():
        worst, most = curve.missed[measured].max(), curve.missed_bound[measured].max()
        stage.say(
            f"the law in bfloat16, at {int(measured.sum())} steps: misses at most {worst:.1e} of a unit's change;"
        )
        stage.say(f"rounding each mean gradient to bfloat16 allows {most:.1e}")
    last = records.read(run, run.n_steps - 1)
    stage.say(f"The largest shifts that single data made in step {last.step}:")
    largest = per_example.top_k_of_step(last.outliers, 5)
    console.print(terminal.shift_table(largest, last.datum, run.shapes, run.data, words.vocab_of(run)))


if __name__ == "__main__":
    stage.run(main, Settings, __doc__)
