"""Texts that say a stretch of their own once more, from which a model can learn to look back: in-context copying.

How long the stretch is differs from text to text, so that a fixed distance back does not lead to what comes next.
"""

import numpy as np
import torch
from jaxtyping import Int, Int64
from torch import Tensor

from devinterp_func import keys
from devinterp_func.text._corpus import SPLITS, Corpus


def repeated(corpus: Corpus, context: int, share: float, *, key: keys.Key | int) -> Corpus:
    """A corpus of which some data repeat their beginning: from some token on, to their end, again and again.

    The beginning that is repeated has a quarter to half of the context. Lengths of the streams, all other data, and
    every datum's first token are as before; each split has its own draw. ``period`` finds these data again.

    Args:
        corpus: a text; its documents begin where they did.
        context: C, tokens a datum, with which ``batches.chunk`` will cut it.
        share: of each split's data, rounded to whole data.
        key: of the draws.

    Raises:
        ValueError: context below 2, or share not above 0 and at most 1.

    >>> from devinterp_func.text import planted
    >>> repeated(planted(key=0), 10, 0.25, key=0)
    Corpus('planted, 25% repeated': 150 types; tokens: train 60,..., valid 3,..., test 3,...)
    """
    if context < 2:
        raise ValueError(f"context is {context}; to be repeated a datum must have at least 2 tokens")
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; it must be above 0 and at most 1")
    train, valid, test = (
        _repeated(getattr(corpus, split), context, share, keys.fold_in(key, "repeated", split)) for split in SPLITS
    )
    return corpus._replace(name=f"{corpus.name}, {share:.0%} repeated", train=train, valid=valid, test=test)


def period(tokens: Int[Tensor, "N C"]) -> Int64[Tensor, "N"]:
    """How many tokens of each datum are its own until it repeats them to its end; 0 where it does so for no half of it.

    >>> period(torch.tensor([[5, 6, 5, 6, 5], [5, 6, 7, 5, 6], [5, 5, 5, 5, 5]]))
    tensor([2, 0, 1])
    """
    found = torch.zeros(len(tokens), dtype=torch.int64, device=tokens.device)
    for length in range(tokens.shape[1] // 2, 0, -1):  # the shortest is the last to be written
        found[(tokens[:, length:] == tokens[:, :-length]).all(1)] = length
    return found


def _repeated(stream: Int64[Tensor, "L"], context: int, share: float, key: keys.Key) -> Int64[Tensor, "L"]:
    n, rng = max(0, (len(stream) - 1) // context), keys.generator(key)
    chosen = np.sort(rng.permutation(n)[: round(share * n)])
    lengths = rng.integers(max(1, context // 4), context // 2, size=len(chosen), endpoint=True)
    places = np.arange(context)
    to, source = (context * chosen[:, None] + x for x in (places, places % lengths[:, None]))
    changed = stream.clone()
    changed[torch.from_numpy(to)] = stream[torch.from_numpy(source)]
    return changed
