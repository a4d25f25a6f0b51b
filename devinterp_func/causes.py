"""Does the ledger find a cause that is known? A planted bigram is learnt from the data that contain it.

For each planted bigram the probe is the log-probability of its second word after the first, in texts not trained on.
Its cause are the data in which the second word follows the first. Data are ranked by their summed amounts over a short
training, and by what knows nothing of the probe: the norms of their deltas, and chance.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.func import vmap

from devinterp_func import batches, keys, planted, probes, retrain, training, transformer
from devinterp_func.batches import Data
from devinterp_func.probes import Probe
from devinterp_func.training import Recipe
from devinterp_func.transformer import Config
from devinterp_func.tree import Params
from devinterp_func.vocabulary import Corpus

PROMPT = 10  # tokens, the last of them the pair's first word


class Study(NamedTuple):
    """How N data, those that were trained on, are ranked for P probes, and which are the cause."""

    scores: dict[str, Float[Tensor, "P N"]]  # higher: thought to have raised the probe
    truth: Bool[Tensor, "P N"]

    def __repr__(self) -> str:
        return f"Study of {len(self.truth)} causes among {self.truth.shape[1]:,} data: {', '.join(self.scores)}"


def study(corpus: Corpus, config: Config, recipe: Recipe, *, n: int = 20, m: int = 1) -> Study:
    """Trains on planted text and ranks the data for each of its bigrams.

    Args:
        corpus: of ``planted``.
        config: the model.
        recipe: of the training, with the factors of all parameters (``ledger.UNITS``).
        n: so many bigrams, at most.
        m: nodes of the quadrature.
    """
    data = batches.chunk(corpus.train, recipe.context)
    pairs = list(planted.planted_bigrams(corpus.vocab).items())[:n]
    followed = [after(corpus.valid, *pair, config) for pair in pairs]
    moves = training.moves(training.initial(config, recipe), data, config, recipe)
    parts = [retrain.of_move(move, followed, m, start=True) for move in moves]
    found = retrain.Amounts(*map(torch.stack, zip(*parts, strict=True)))
    ids, norm = retrain.totals(found.norm, found.datum)
    scores = {
        name: torch.stack([retrain.totals(amounts[:, i], found.datum)[1] for i in range(len(followed))])
        for name, amounts in (("credit", found.credit), ("gradient at the start", found.start))
    }
    scores["norm of the datum's delta"] = norm.expand(len(followed), -1)
    shape = (len(followed), len(ids))
    scores["random"] = keys.uniform(shape, 0.0, 1.0, key=keys.fold_in(recipe.seed, "random"))
    return Study(scores, torch.stack([contains(data, *pair)[ids] for pair in pairs]))


def after(stream: Int[Tensor, "T"], first: int, second: int, config: Config, texts: int = 5) -> Probe:
    """Mean log-probability of the second word, in nats, over the first prompts in a stream that end in the first word.

    Raises:
        ValueError: no prompt ends in it.
    """
    prompts = stream.unfold(0, PROMPT, 1)
    prompts = prompts[prompts[:, -1] == first][:texts]
    if not len(prompts):
        raise ValueError(f"no {PROMPT} tokens of the stream end in token {first}; it must occur after the start")

    def function(params: Params) -> Tensor:
        logits = vmap(lambda prompt: transformer.apply(params, prompt, config)[-1])(prompts)
        return logits.log_softmax(-1)[:, second].mean()

    return probes.of(f"{second} after {first}", function)


def contains(data: Data, first: int, second: int) -> Bool[Tensor, "N"]:
    """The data in which the second token follows the first.

    >>> contains(Data(torch.tensor([[1, 2], [2, 1]]), torch.tensor([[2, 1], [1, 3]])), 1, 2)
    tensor([ True, False])
    """
    return ((data.tokens == first) & (data.targets == second)).any(1)
