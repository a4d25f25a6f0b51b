"""The data of a run: a text cut into data, or any tensors with a leading N; all stored with it."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten, treespec_dumps, treespec_loads

from devinterp_func import batches, text, tree
from devinterp_func.batches import Data
from devinterp_func.records._sealed import RecordError
from devinterp_func.text import Corpus
from devinterp_func.training import Recipe

SPLITS = ("train", "valid", "test")
TEXT = "text"  # the structure of data cut from tokens


@dataclass(frozen=True, eq=False)
class Dataset:
    """Data to train on and, where there are any, to validate and test on.

    Any pytrees of tensors with a leading N; an example of each is what the loss takes after its parameters.

    >>> Dataset((torch.zeros(5, 8, 8), torch.zeros(5).long()))
    Dataset('data': train 5)
    """

    train: Any
    valid: Any = None
    test: Any = None
    name: str = "data"
    corpus: Corpus | None = None  # the text that they are cut from

    def split(self, name: str) -> Any:
        """The data of a part, None where there are none."""
        return getattr(self, name)

    def sizes(self) -> dict[str, int]:
        """Number of data of each part that there is."""
        return {name: batches.n_data(self.split(name)) for name in SPLITS if self.split(name) is not None}

    def __repr__(self) -> str:
        return f"Dataset({self.name!r}: {', '.join(f'{name} {n:,}' for name, n in self.sizes().items())})"


def dataset(data: Any, recipe: Recipe) -> Dataset:
    """What a run is made of: a text is cut into data, other data are taken as they are.

    Args:
        data: a corpus, a ``Dataset``, or data to train on.
        recipe: whose context a text is cut by.

    Raises:
        TypeError, ValueError: as ``batches.n_data``; a context was asked for that means nothing to the data; a part of
            the text is shorter than a datum.
    """
    if isinstance(data, Corpus):
        return _cut(data, recipe.context)
    found = data if isinstance(data, Dataset) else Dataset(data if isinstance(data, tuple | list) else (data,))
    if found.corpus is None and recipe.context != Recipe.context:
        raise ValueError(f"context is {recipe.context}, but these data are not cut from a text: leave it out")
    found.sizes()
    structures = {str(tree_flatten(found.split(name))[1]) for name in found.sizes()}
    if len(structures) > 1:
        raise ValueError(f"the parts of the data have different structures: {', '.join(sorted(structures))}")
    return found


def _cut(corpus: Corpus, context: int) -> Dataset:
    for part in SPLITS:
        if len(getattr(corpus, part)) < context + 1:
            raise ValueError(
                f"the {part} part of {corpus.name!r} has {len(getattr(corpus, part))} tokens, fewer than the "
                f"{context + 1} that a context of {context} takes; a longer text or a smaller context would do"
            )
    train, valid, test = (batches.chunk(getattr(corpus, part), context) for part in SPLITS)
    return Dataset(train, valid, test, corpus.name, corpus)


def describe_data(data: Dataset) -> dict[str, Any]:
    """What a manifest says of the data."""
    if data.corpus is not None:
        streams = {name: len(getattr(data.corpus, name)) for name in SPLITS}
        return {"kind": TEXT, "name": data.name, "fingerprint": text.fingerprint(data.corpus), **streams}
    packed = pack_data(data)
    return {
        "kind": "tensors",
        "name": data.name,
        "fingerprint": _digest(packed),
        "structure": _structure(data),
        **data.sizes(),
    }


def pack_data(data: Dataset) -> dict[str, Tensor]:
    """The data as tensors by name."""
    if data.corpus is not None:
        return text.pack(data.corpus)
    parts = {name: tree.leaves(data.split(name)) for name in data.sizes()}
    return {f"{name}/{i}": leaf.detach().cpu() for name, leaves in parts.items() for i, leaf in enumerate(leaves)}


def unpack_data(about: dict[str, Any], tensors: dict[str, Tensor], context: int) -> Dataset:
    """The data that ``pack_data`` packed."""
    if about["kind"] == TEXT:
        return _cut(text.unpack(about["name"], tensors), context)
    parts = []
    for name in SPLITS:
        leaves = [tensors[key] for key in sorted(tensors, key=_number) if key.startswith(f"{name}/")]
        parts.append(_rebuilt(leaves, about["structure"]) if leaves else None)
    train, valid, test = parts
    return Dataset(train, valid, test, about["name"])


def _number(key: str) -> int:
    return int(key.partition("/")[2])


def _structure(data: Dataset) -> str:
    """How the tensors are nested, as JSON."""
    if isinstance(data.train, Data):
        return "Data"
    try:
        return treespec_dumps(tree_flatten(data.train)[1])
    except Exception as error:
        raise RecordError(
            f"data must be tuples, lists and dicts of tensors, to be stored with the run: {error}"
        ) from error


def _rebuilt(leaves: list[Tensor], structure: str) -> Any:
    return Data(*leaves) if structure == "Data" else tree_unflatten(leaves, treespec_loads(structure))


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
