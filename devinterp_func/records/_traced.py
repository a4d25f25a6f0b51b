"""The graph of a run's model."""

from devinterp_func import batches, tree
from devinterp_func import graph as graphs
from devinterp_func.graph import Graph
from devinterp_func.models import Model
from devinterp_func.records._dataset import Dataset
from devinterp_func.tree import Params


def traced(model: Model, params: Params, data: Dataset, device: str) -> Graph:
    """The graph of a model's loss for an example of the data, with parameters like these in the model's order."""
    params = {name: params[name].to(device) for name in model.shapes}
    example = tree.map(lambda x: x.to(device), batches.example(data.train, 0))
    return graphs.of(model.loss, params, *example)
