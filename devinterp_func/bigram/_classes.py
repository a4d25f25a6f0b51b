"""What of a text the corpus' statistics alone predict: classes of positions, and a model's loss on each class."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from devinterp_func import batches, keys, per_example
from devinterp_func.batches import Data
from devinterp_func.bigram._corpus import PairCounts, Pairs, count_pairs, pair_counts
from devinterp_func.graph import Graph, require_head
from devinterp_func.tree import Params

CLASSES = ("unigram", "bigram", "neither")
LEAST, LIFT = 5, 10  # a bigram occurs so often, and so many times as often as its target does elsewhere

AT_ONCE = 20  # texts run through the model


class ClassTexts(NamedTuple):
    """Texts to measure losses on, and the class of each of their positions."""

    datum: Int[Tensor, "m"]  # ids in the validation split
    tokens: Int[Tensor, "m C"]
    targets: Int[Tensor, "m C"]
    kind: Int[Tensor, "m C"]  # index in CLASSES
    common: int

    def share(self) -> Float[Tensor, "3"]:
        """Share of each class in the positions."""
        return self.kind.flatten().bincount(minlength=len(CLASSES)).double() / self.kind.numel()

    def __repr__(self) -> str:
        shares = ", ".join(f"{name} {x:.0%}" for name, x in zip(CLASSES, self.share().tolist(), strict=True))
        return f"{len(self.tokens)} texts: {shares}"


def token_classes(
    tokens: Int[Tensor, "n C"], targets: Int[Tensor, "n C"], counts: PairCounts, common: int = 100
) -> Int[Tensor, "n C"]:
    """What of the training text's statistics predicts each target: the class of every position, as an index in CLASSES.

    Unigram: the target is one of the ``common`` commonest tokens. Bigram: it is not, and it follows its input token at
    least LEAST times, LIFT times as often as it does any token. Neither: all others.

    Args:
        tokens, targets: of any texts.
        counts: of the training text.
        common: how many tokens count as common.

    Raises:
        ValueError: common is not in 1 to V.
    """
    V = len(counts.second)
    if not 1 <= common <= V:
        raise ValueError(f"common is {common}; it must be from 1 to V = {V}")
    commonest = counts.second.argsort(descending=True, stable=True)[:common]
    input, output = tokens.flatten(), targets.flatten()
    n = pair_counts(counts, Pairs(output, input))
    lifted = n * counts.second.sum() >= LIFT * counts.first[input] * counts.second[output]
    kind = torch.where((n >= LEAST) & lifted, 1, 2).where(~torch.isin(output, commonest), 0)
    return kind.view(tokens.shape)


def class_texts(
    held_out: Data, stream: Int[Tensor, "T"], vocab_size: int, m: int = 60, common: int = 100, *, key: keys.Key | int
) -> ClassTexts:
    """Held-out texts, with the classes of their positions.

    Args:
        held_out: to draw from, such as the validation split.
        stream: the training text, whose statistics tell the classes apart.
        vocab_size: V.
        m: how many.
        common: of ``token_classes``.
        key: of the draw.
    """
    datum = keys.permutation(len(held_out.tokens), key=key)[:m]
    tokens, targets = batches.take(held_out, datum)
    counts = count_pairs(stream, vocab_size)
    return ClassTexts(datum, tokens, targets, token_classes(tokens, targets, counts, common), common)


def class_losses(graph: Graph, params: Params, texts: ClassTexts) -> Float[Tensor, "3"]:
    """Mean loss over the positions of each class, nats; NaN for a class without positions.

    Raises:
        ValueError: the model has no head, so no losses of positions, or the texts do not fit it.
    """
    require_head(graph)
    parts = zip(texts.tokens.split(AT_ONCE), texts.targets.split(AT_ONCE), strict=True)
    loss = torch.cat([per_example.losses(graph, params, *part) for part in parts]).double()
    return torch.stack([loss[texts.kind == i].mean() for i in range(len(CLASSES))])
