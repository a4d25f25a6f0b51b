"""Scores of other libraries: what the data of a trained model did to the loss of held-out data, to be judged.

    ekfac    influence functions, with an eigenvalue-corrected Kronecker-factored Fisher matrix: kronfluence
             (Grosse et al. 2023, *Studying Large Language Model Generalization with Influence Functions*)
    trak     the same with randomly projected gradients of all weights, of one model: dattri
             (Park et al. 2023, *TRAK: Attributing Model Behavior at Scale*)
    bm25     how alike the tokens are; it knows no model: bm25s
             (Robertson and Zaragoza 2009, *The Probabilistic Relevance Framework: BM25 and Beyond*)

Each is of whole data, and the first two of the weights at the end: how training came there they do not know. All are of
the mean loss of held-out data; of any other probe, such as an entry of the bigram decoder, they have no value. Signs
are those of influences, the derivative by the weight of a datum in the mean loss.

Needs pip install "devinterp_func[rivals]". kronfluence asks for torchvision, though it imports none of it, and one of
another build than torch's breaks transformers ("operator torchvision::nms does not exist"): take both of one index, or
uninstall it again.
"""

import contextlib
import copy
import gc
import importlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from rival_networks import Network
from torch import Tensor, nn

from devinterp_func import credit, keys
from devinterp_func.credit.probes import Probe
from devinterp_func.tree import Params

Rival = Literal["ekfac", "trak", "bm25"]
LIBRARIES = {"ekfac": "kronfluence", "trak": "dattri", "bm25": "bm25s"}
Batch = tuple[Tensor, ...]
NUMBERS = 2**25  # of gradients, held at once
SIZE = 512  # of a projection


def rival_scores(
    names: Sequence[Rival],
    network: Network,
    data: Batch,
    datum: Int[Tensor, "S n"],
    queries: Sequence[Batch],
    *,
    key: keys.Key | int = 0,
) -> dict[str, Float[Tensor, "P S n"]]:
    """Scores by visit, as ``credit.window_scores`` gives them; of the loss of held-out data alone.

    Args:
        names: "ekfac", "trak" or "bm25", which is for texts.
        network: the model with the weights at the window's end.
        data: all training data: inputs and targets.
        datum: which of them each visit is of.
        queries: of each probe the data whose mean loss it is: inputs and targets.
        key: of drawn labels and projections.

    Raises:
        ImportError: a library is not installed.
        ValueError: a name that is none of these, or no queries.
    """
    made: dict[str, Callable[[Batch], Tensor]] = {
        "ekfac": lambda own: ekfac(network, own, queries, key=key),
        "trak": lambda own: trak(network, own, queries, size=min(SIZE, len(own[0]) // 4), key=key),
        "bm25": lambda own: bm25(own[0], [query[0] for query in queries]),
    }
    if unknown := [name for name in names if name not in made]:
        raise ValueError(f"{unknown[0]!r} is no rival; there are {', '.join(made)}")
    ids = datum.unique()
    own = tuple(x[ids] for x in data)
    return {name: credit.by_visit(made[name](own), ids, datum) for name in names}


def queries_of(probes: Sequence[Probe]) -> list[Batch]:
    """The data whose mean losses the probes are.

    Raises:
        ValueError: a probe is no loss of data, so that these scores have no value for it.
    """
    if other := [probe for probe in probes if probe.data is None]:
        raise ValueError(
            f"{other[0]} is no loss of data; for such a probe there are the scores of credit.window_scores"
        )
    return [tuple(probe.data) for probe in probes if probe.data is not None]


def ekfac(
    network: Network, data: Batch, queries: Sequence[Batch], *, batch_size: int = 64, key: keys.Key | int = 0
) -> Float[Tensor, "P N"]:
    """EK-FAC influence of data on the mean losses of P queries; damped by a tenth of the mean eigenvalue.

    The Fisher is the true one, of labels drawn from the model. Weights are taken to be at a minimum of the data's loss.

    Args:
        network: the trained model.
        data: what it was trained on, each datum once: inputs and targets.
        queries: each some data, inputs and targets.
        batch_size: data at once; each holds a gradient of all that is seen.
        key: of the labels.

    Raises:
        ImportError: kronfluence is not installed.
        ValueError: there are no queries.
    """
    _require(queries)
    analyzer, arguments = (_needed(f"kronfluence.{name}") for name in ("analyzer", "arguments"))
    sets, task = torch.utils.data.TensorDataset, _task(network)
    asked, sizes = _joined(queries)
    with tempfile.TemporaryDirectory() as folder, _quiet(), torch.random.fork_rng(), _few_objects():
        torch.manual_seed(int(keys.generator(keys.fold_in(key, "ekfac")).integers(2**63)))
        module = analyzer.prepare_model(copy.deepcopy(network.module), task)  # which it changes
        own = analyzer.Analyzer(
            "run", module, task, cpu=not data[0].is_cuda, disable_tqdm=True, output_dir=folder, log_level=logging.ERROR
        )
        own.fit_all_factors("factors", sets(*data), batch_size, factor_args=arguments.FactorArguments(strategy="ekfac"))
        own.compute_pairwise_scores(
            "scores",
            "factors",
            query_dataset=sets(*asked),
            train_dataset=sets(*data),
            per_device_query_batch_size=batch_size,
            per_device_train_batch_size=batch_size,
            score_args=arguments.ScoreArguments(damping_factor=None),
        )
        scores = own.load_pairwise_scores("scores")["all_modules"].double()
    means = torch.stack([part.mean(0) for part in scores.split(sizes)])
    return -means / len(data[0])


def _task(network: Network) -> Any:
    """The losses, in kronfluence's form."""

    base: Any = _needed("kronfluence.task").Task

    class Task(base):
        def compute_train_loss(self, batch: Batch, model: nn.Module, sample: bool = False) -> Tensor:
            """Its sum, over positions too: so the gradients' second moments are the Fisher of labels drawn apart."""
            logits = network.logits(model, batch[0]).flatten(0, -2)
            drawn = logits.detach().softmax(-1).multinomial(1).flatten() if sample else batch[1].flatten()
            return F.cross_entropy(logits, drawn, reduction="sum")

        def compute_measurement(self, batch: Batch, model: nn.Module) -> Tensor:
            logits = network.logits(model, batch[0])
            total = F.cross_entropy(logits.flatten(0, -2), batch[1].flatten(), reduction="sum")
            return total / logits[0, ..., 0].numel()

        def get_influence_tracked_modules(self) -> list[str]:
            return network.seen

    return Task()


def trak(
    network: Network,
    data: Batch,
    queries: Sequence[Batch],
    *,
    size: int = SIZE,
    damping: float = 0.0,
    key: keys.Key | int = 0,
) -> Float[Tensor, "P N"]:
    """TRAK's scores of data on the mean losses of P queries, of one trained model, with the gradients of all weights.

    What is linearised is log p/(1 − p) with p = exp(−loss): of a text, the geometric mean of its tokens' probabilities.
    Time goes as size times weights for every batch of gradients: a model of millions of weights takes hours.

    Args:
        network, data, queries: of ``ekfac``.
        size: of the projection, less than the number of data; 0 for none, which takes the square of the weights.
        damping: added to the diagonal of the projected gradients' second moments, where gradients are divided by the
            square root of the number of weights.
        key: of the projection.

    Raises:
        ImportError: dattri is not installed.
        ValueError: there are no queries, or not more data than the projection's size.
    """
    _require(queries)
    if size >= len(data[0]):
        raise ValueError(f"size is {size}; of {len(data[0])} data it must be less, or their products are singular")
    tasks, algorithm = _needed("dattri.task"), _needed("dattri.algorithm.trak")
    module, device = network.module, str(data[0].device)

    def loss(params: Params, example: Batch) -> Tensor:
        def call(*inputs: Any, **options: Any) -> Any:
            return torch.func.functional_call(module, params, inputs, options)

        logits = network.logits(call, example[0][None]).flatten(0, -2)
        return F.cross_entropy(logits, example[1].flatten())

    def margin(params: Params, example: Batch) -> Tensor:
        own = loss(params, example)
        return -own - torch.log(-torch.expm1(-own))

    def probability(params: Params, example: Batch) -> Tensor:
        return torch.exp(-loss(params, example))

    n = max(1, NUMBERS // sum(w.numel() for w in module.parameters()))
    seed = int(keys.generator(keys.fold_in(key, "trak")).integers(2**31))
    projector = {"proj_dim": max(size, 1), "proj_seed": seed, "proj_max_batch_size": 32, "device": device}
    projector["proj_type"] = "rademacher" if size else "identity"
    with _quiet(), torch.random.fork_rng():  # a loader of data draws a seed, whatever it is for
        task = tasks.AttributionTask(margin, module, module.state_dict(), target_func=loss)
        own = algorithm.TRAKAttributor(task, probability, projector, device=device, regularization=damping)
        own.cache(_loader(data, n))
        asked, sizes = _joined(queries)
        scores = own.attribute(_loader(asked, n)).detach().double()
    return torch.stack([part.mean(1) for part in scores.split(sizes, 1)])


def bm25(data: Int[Tensor, "N C"], queries: Sequence[Int[Tensor, "m C"]]) -> Float[Tensor, "P N"]:
    """How little alike the tokens of data and of queries are: minus BM25, as a text that is alike lowers the loss.

    Raises:
        ImportError: bm25s is not installed.
        ValueError: there are no queries.
    """
    _require(queries)
    index = _needed("bm25s").BM25()
    index.index(_words(data), show_progress=False)
    found = [[torch.from_numpy(index.get_scores(text)) for text in _words(query)] for query in queries]
    return -torch.stack([torch.stack(each).double().mean(0) for each in found])


def _words(texts: Int[Tensor, "n C"]) -> list[list[str]]:
    return [[str(token) for token in text] for text in texts.tolist()]


# ---- the libraries


def require(names: Sequence[str]) -> None:
    """Refuses scores whose libraries are not here.

    Raises:
        ImportError: naming what would bring them.
    """
    for name in names:
        _needed(LIBRARIES[name])


def _require(queries: Sequence[Any]) -> None:
    if not queries:
        raise ValueError("there are no queries; give the held-out data of at least one probe that is a loss")


def _joined(queries: Sequence[Batch]) -> tuple[Batch, list[int]]:
    """The data of all queries, and how many each has."""
    return tuple(torch.cat(parts) for parts in zip(*queries, strict=True)), [len(query[0]) for query in queries]


def _needed(name: str) -> ModuleType:
    try:
        with _quiet():
            return importlib.import_module(name)
    except ImportError as error:
        library = name.partition(".")[0]
        raise ImportError(f'this score needs {library}: pip install "devinterp_func[rivals]"') from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars, and no warnings of what the libraries call that is to go."""
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _few_objects() -> Iterator[None]:
    """kronfluence collects garbage after every pass, which is slow among many objects: these stand apart."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _loader(data: Batch, n: int) -> Any:
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data), batch_size=n, shuffle=False)
