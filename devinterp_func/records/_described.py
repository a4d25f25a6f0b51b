"""What a training's manifest says of it, and back."""

import dataclasses
import math
from typing import Any

from devinterp_func import batches, optim, training
from devinterp_func import graph as graphs
from devinterp_func.graph import Graph
from devinterp_func.models import Model
from devinterp_func.optim import Schedule
from devinterp_func.records._card import card, is_card
from devinterp_func.records._dataset import Dataset, describe_data
from devinterp_func.records._machine import machine
from devinterp_func.records._record_step import Recording
from devinterp_func.training import Recipe

MADE_BY = {"model", "recipe", "recording", "units", "data", "device", "threads"}  # what the manifest must say


def describe(
    data: Dataset, model: Model, graph: Graph, recipe: Recipe, recording: Recording, device: str
) -> dict[str, Any]:
    """The manifest of a training: plain values that JSON holds."""
    how = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)}
    how |= {"schedule": dataclasses.asdict(recipe.schedule), "optimizer": optim.to_dict(recipe.optimizer)}
    return {
        "model": {**model.source, "name": model.name, "graph": graphs.fingerprint(graph)},
        "recipe": how | {"max_norm": None if math.isinf(recipe.max_norm) else recipe.max_norm},
        "recording": dataclasses.asdict(recording) | {"units": list(recording.units)},
        "n_steps": training.total_steps(recipe, batches.n_data(data.train)),
        "parameters": list(graph.shapes),
        "units": [[name, list(graph.shapes[name])] for name in graphs.choose(graph, recording.units)],
        "data": describe_data(data),
        "device": device,
        **machine(),
        **({"card": card(device)} if is_card(device) else {}),
    }


def read_recipe(fields: dict[str, Any]) -> Recipe:
    """A recipe from its manifest, where null stands for no clipping."""
    own = {"schedule": Schedule(**fields["schedule"]), "optimizer": optim.from_dict(fields["optimizer"])}
    return Recipe(**fields | own | {"max_norm": math.inf if fields["max_norm"] is None else fields["max_norm"]})


def read_recording(fields: dict[str, Any]) -> Recording:
    """What is recorded, from its manifest."""
    return Recording(**fields | {"units": tuple(fields["units"])})
