"""The run's page: what was found, the loss, how a step's change came about, and how many data made each step."""

from collections.abc import Iterator, Mapping

from jaxtyping import Float
from markupsafe import Markup
from torch import Tensor

from devinterp_func.optim import PARTS
from devinterp_func.show import page, words
from devinterp_func.show.explorer._beginnings import beginnings
from devinterp_func.show.explorer._charts import course
from devinterp_func.show.explorer._lines import python
from devinterp_func.show.explorer._site import Site
from devinterp_func.show.explorer._spans import binned, span
from devinterp_func.show.explorer._types import Links, Panel, Query, View

EFFECTIVE = """How many data made a step, by their recorded outliers: (Σ a)² / Σ a² of the sums a of |Δ| of each datum.
As many as the batch has where all moved the weights as much, 1 where one did it all."""
SPLIT = """Shares of the squared change of all units: what the step's own data did, what data of earlier steps did
through the optimizer's memory, what weight decay did. They add up to 1."""
CAPTION = "Means over as many bins of steps as can be told apart. A click opens a step; dragging, a span of steps."


def effective(amount: Float[Tensor, "T n"]) -> Float[Tensor, "T"]:
    """How many data made each step: (Σ a)² / Σ a² of each datum's amount a ≥ 0; NaN where nothing moved.

    >>> import torch
    >>> effective(torch.tensor([[1.0, 1.0], [3.0, 0.0]]))
    tensor([2., 1.])
    """
    return amount.sum(1) ** 2 / (amount**2).sum(1)


def shares(along: Float[Tensor, "T 3"]) -> Float[Tensor, "T 3"]:
    """Present, past and decay as shares of each step's squared change."""
    return along / along.sum(1, keepdim=True)


def view(site: Site, id: str, query: Query, links: Links) -> View:
    """The run, or a span of its steps."""
    start, stop = span(site, query)
    told = f"{site.run.manifest['model']['name']}, {site.run.dataset.name}, {page.counted(site.n_steps, 'step')}"
    how = words.training_words(site.run.manifest["recipe"])
    whole = (start, stop) == (0, site.n_steps)
    begin = beginnings(site, links) if whole else ()
    panels = [*begin, _span_form(site, start, stop, links), *_courses(site, start, stop, links)]
    return View("The run", panels, f"`{site.run.path.name}`: {told}. {how}.")


def _courses(site: Site, start: int, stop: int, links: Links) -> Iterator[Panel]:
    """Courses over the steps of the span."""
    seen, at, room = site.index.course, f"[{start}:{stop}]", "dif.show.explorer"
    loss, many = seen.loss.mean(1)[start:stop], effective(seen.amount)[start:stop]
    line = python(site, f"site.index.course.loss.mean(1){at}")
    yield _course(site, start, links, Panel("Loss", "", (), line, loss), {"loss": loss}, "loss, nats")
    line = python(site, f"{room}.effective(site.index.course.amount){at}")
    panel = Panel("How many data made a step", EFFECTIVE, (), line, many)
    yield _course(site, start, links, panel, {"data": many}, "effective number of data")
    if not words.all_is_present(site.run.manifest["recipe"]):
        parts = shares(seen.along)[start:stop]
        line = python(site, f"{room}.shares(site.index.course.along){at}")
        panel = Panel("Whose a step's change is", SPLIT, (), line, parts)
        yield _course(site, start, links, panel, dict(zip(PARTS, parts.T, strict=True)), "share of the change")


def _course(
    site: Site, start: int, links: Links, panel: Panel, values: Mapping[str, Float[Tensor, "T"]], ylabel: str
) -> Panel:
    """The panel with its figure."""
    series = {name: binned(column, start) for name, column in values.items()}
    to = links("step", 0).replace("0.html", "{}.html")
    drawn = course(series, ylabel, CAPTION, per_epoch=site.run.steps_per_epoch, to=to, brush=links("run"))
    return panel._replace(items=[drawn])


def _span_form(site: Site, start: int, stop: int, links: Links) -> Panel:
    """Facts of the span, and a form for another."""
    seen = site.index.course
    facts = {
        "steps": (stop - start, f"{start:,} to {stop:,}"),
        "data seen": (len(seen.datum[start:stop].unique()), f"of {site.run.n_data:,}"),
        "loss at the start": (float(seen.loss[start : start + 20].mean()), "nats, mean of the first 20 steps"),
        "loss at the end": (float(seen.loss[max(start, stop - 20) : stop].mean()), "nats, mean of the last 20"),
    }
    form = Markup(
        '<form class="span" method="get" action="{}"><label>from step <input name="start" inputmode="numeric" '
        'value="{}"></label> <label>to <input name="stop" inputmode="numeric" value="{}"></label> '
        "<button>Show</button></form>"
    ).format(links("run"), start, stop)
    return Panel("Steps", "", [page.facts(facts), form])
