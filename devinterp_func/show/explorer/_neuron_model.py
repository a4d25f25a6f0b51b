"""What the model does with a neuron: the predictions that its ablation flips, and the logits it raises."""

from collections.abc import Iterator

import polars as pl
from jaxtyping import Float
from torch import Tensor

from devinterp_func import neurons
from devinterp_func.neurons import Neuron
from devinterp_func.records import RecordError
from devinterp_func.show import _neuron_cards, page, results, schema, tables
from devinterp_func.show.explorer._site import Site
from devinterp_func.show.explorer._types import Links, Panel
from devinterp_func.show.schema import Column

LOGITS = 12  # tokens shown at either end
TABLES = {"neurons": tables.NEURONS, "verdicts": tables.VERDICTS, "views": tables.VIEWS, "flips": tables.FLIPS}
FLIPPED = """Predictions that change when the neuron's weights are set to 0: on the data that moved it, beside random
data and random neurons. Chips are notable tokens from the training record; those that flip are marked."""
NOT_ABLATED = "No results of this neuron's ablation: `{}` and then `{}` ablate the neurons with the most outliers."
RAISED = """What one unit of the neuron's activity adds to the logits on the direct path from the stream, through the
last norm, after the last recorded step."""
LOGIT = schema.Table(
    "Logits.", "explore.py", {"token": schema.token(), "logit": Column(schema.FLOAT, "added", format="+.3f")}
)


def flips(site: Site, name: str) -> dict[str, list[object]] | None:
    """A neuron's rows of the flip table of ``ablate.py``, column by column; None if it was not ablated.

    Args:
        site: of ``open``.
        name: of the neuron.
    """
    found = {table: site.table(table, kind) for table, kind in TABLES.items()}
    if any(table is None for table in found.values()) or not results.has_table(site.folder, "flip_excerpts"):
        return None
    own = {table: frame.filter(pl.col("neuron") == name) for table, frame in found.items() if frame is not None}
    there = not any(own[table].is_empty() for table in ("neurons", "verdicts", "views"))
    return own["flips"].to_dict(as_series=False) if there else None


def flipped(site: Site, neuron: Neuron, line: str, links: Links) -> Panel:
    """What its ablation flips beside controls, of the run's results.

    Args:
        site: what it is about; of text.
        neuron: which.
        line: what gives the table.
        links: from the page.
    """
    found = flips(site, str(neuron))
    if found is None:
        scripts = (results.command(stage, site.run) for stage in ("attribute", "ablate"))
        return Panel("What it flips", "", [page.note(NOT_ABLATED.format(*scripts))], line, found)
    cards = _neuron_cards.cards(site.run, site.folder, [str(neuron)])
    return Panel("What it flips", FLIPPED, [page.resolve(cards, links)], line, found)


def effect(site: Site, neuron: Neuron) -> Float[Tensor, "V"] | None:
    """``neurons.logit_effect`` through the last norm; None without a direct path, or where no model is known."""
    try:
        return neurons.logit_effect(site.run.graph, site.params, neuron, norm=True)
    except (ValueError, RecordError):
        return None


def logits(site: Site, neuron: Neuron, line: str, links: Links) -> Iterator[Panel]:
    """The logits that it raises and lowers most; nothing where it does not write to the stream.

    Args:
        site: what it is about.
        neuron: which.
        line: what gives the effect.
        links: from the page.
    """
    added = effect(site, neuron)
    if added is None or site.vocab is None:
        return
    order = added.argsort(descending=True, stable=True)
    shown = {"Raised": order[:LOGITS], "Lowered": order.flip(0)[:LOGITS]}
    items = [
        page.typed_table(
            schema.frame(LOGIT, {"token": ids.tolist(), "logit": added[ids].double().tolist()}),
            LOGIT,
            site.vocab,
            caption,
            fold=None,
            links=links,
        )
        for caption, ids in shown.items()
    ]
    yield Panel("Logits raised and lowered", RAISED, items, line, added)
