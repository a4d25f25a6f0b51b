"""Laws of the bigram decoder of other models than the post's: tied and untied, scaled and not; and who has none."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from oracles import loop_of_grads
from run_builders import PLANTED, recorded
from strategies import factor_of, some, uses
from torch import Tensor, nn

from devinterp_func import batches, bigram, graph, keys, models, optim, per_example, records, training
from devinterp_func.batches import Data
from devinterp_func.bigram import Pairs, Shifts, _correlations, _decoder, _shifts, _split
from devinterp_func.graph import Graph
from devinterp_func.models import Model
from devinterp_func.tree import Params

V = 11
KINDS = ["GPT2", "GPTNeoX", "Llama"]
EMBEDDINGS = {
    "GPT2": "transformer.wte.weight",
    "GPTNeoX": "gpt_neox.embed_in.weight",
    "Llama": "model.embed_tokens.weight",
}
PAIRS = Pairs(torch.arange(V * V) // V, torch.arange(V * V) % V)  # all there are, in the order of a dense matrix


def hugging_face(kind: str, vocab_size: int = V, dropout: float = 0.2) -> Model:
    """A small language model of transformers."""
    hub = pytest.importorskip("transformers", reason="needs transformers: pip install 'devinterp_func[hf]'")
    wide = dict(hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2)
    drops = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), dropout)
    choices: dict[str, dict[str, Any]] = {
        "GPT2": dict(n_positions=16, n_embd=8, n_layer=1, n_head=2, **drops),
        "GPTNeoX": dict(hidden_dropout=dropout, attention_dropout=dropout, max_position_embeddings=16, **wide),
        "Llama": dict(attention_dropout=dropout, max_position_embeddings=16, **wide),
        "Gemma": dict(head_dim=4, num_key_value_heads=1, max_position_embeddings=16, **wide),
    }
    ids = dict(bos_token_id=0, eos_token_id=0, pad_token_id=0)
    return models.causal_lm(getattr(hub, f"{kind}Config")(vocab_size=vocab_size, **ids, **choices[kind]))


def double(model: Model) -> Params:
    """Weights in float64, those of no two entries alike."""
    noise = {name: keys.uniform(shape, -0.3, 0.3, key=keys.fold_in(1, name)) for name, shape in model.shapes.items()}
    return {name: w.double() + noise[name] for name, w in model.init(0).items()}


def traced(model: Model, params: Params, context: int = 4) -> Graph:
    return graph.of(model.loss, params, *torch.zeros(2, context, dtype=torch.int64))


def texts(n: int = 3, context: int = 4) -> Data:
    drawn = keys.generator(5).integers(0, V, (2, n, context))
    return Data(*torch.from_numpy(drawn))


def first_step(kind: str, dropout: float = 0.2) -> tuple[Model, Graph, training.Move]:
    model = hugging_face(kind, dropout=dropout)
    params = double(model)
    made, recipe = traced(model, params), training.Recipe(context=4, batch_size=3, lr=2.0)
    (move,) = training.moves(made, params, texts(), recipe, captured=bigram.capture_units(made), stop=1)
    return model, made, move


# ---- shifts and their split


@pytest.mark.parametrize("kind", KINDS)
def test_the_data_s_parts_and_the_cross_term_add_up_to_the_dense_shift(kind: str) -> None:
    """W_U and W_E are one tensor in GPT-2: ΔW_UE = W ΔWᵀ + ΔW Wᵀ + ΔW ΔWᵀ."""
    _, made, move = first_step(kind)
    before, after = (bigram.decoder(*bigram.decoder_matrices(made, w)) for w in (move.before, move.after))
    split = bigram.datum_split(made, move, *PAIRS)
    dense = (after - before).flatten()
    assert float(dense.abs().max()) > 1e-2
    torch.testing.assert_close(split.total(), dense, rtol=0, atol=1e-10)
    dW_U, dW_E = (move.after[name] - move.before[name] for name in bigram.decoder_units(made))
    torch.testing.assert_close(split.cross, (dW_U @ dW_E.T).flatten(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_a_datum_s_part_is_of_its_own_gradient_of_both_tables(kind: str) -> None:
    model, made, move = first_step(kind, dropout=0.0)
    data = batches.take(texts(), move.datum)
    grads = loop_of_grads(model.loss, move.before, *data)
    deltas = optim.deltas(grads, move.split)
    dW_U, dW_E = (deltas[name] for name in bigram.decoder_units(made))
    W_U, W_E = bigram.decoder_matrices(made, move.before)
    split = bigram.datum_split(made, move, *PAIRS)
    for j in range(3):
        alone = _decoder.terms(W_U, W_E, dW_U[j], dW_E[j])
        torch.testing.assert_close(split.embedding[j], alone.embedding.flatten(), rtol=0, atol=1e-10)
        torch.testing.assert_close(split.unembedding[j], alone.unembedding.flatten(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_shifts_of_a_step_are_those_of_the_dense_matrix(kind: str) -> None:
    _, made, move = first_step(kind)
    before, after = (bigram.decoder(*bigram.decoder_matrices(made, w)) for w in (move.before, move.after))
    size = ((after - before).flatten().abs() * 1e10).round()  # of tied weights W_UE is symmetric: ties, by index
    order = size.argsort(descending=True, stable=True)[:9]
    found = _shifts.step_shifts(made, move, 9, *PAIRS)
    assert (found.output.long() * V + found.input).tolist() == order.tolist()
    torch.testing.assert_close(found.value(), (after - before).flatten()[order], rtol=0, atol=1e-10)
    torch.testing.assert_close(found.change, (after - before).flatten(), rtol=0, atol=1e-10)
    assert float(found.missed) < 1e-10


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_step_is_captured_with_is_each_table_once(kind: str) -> None:
    made = traced(model := hugging_face(kind), model.init(0))
    unembedding, embedding = bigram.decoder_units(made)
    assert embedding == EMBEDDINGS[kind] and (unembedding == embedding) == (kind == "GPT2")
    assert sorted(bigram.capture_units(made)) == sorted({unembedding, embedding})


@pytest.mark.parametrize("kind", ["GPT2", "GPTNeoX"])
def test_a_walk_over_a_recorded_run_adds_up(kind: str, tmp_path) -> None:
    model = hugging_face(kind, len(PLANTED.vocab))
    recipe = training.Recipe(context=10, batch_size=6, n_steps=4)
    run = recorded(tmp_path / "run", recipe, records.Recording(k=5, snapshot_every=2), model=model)
    pairs = Pairs(torch.tensor([5, 9, 0]), torch.tensor([3, 9, 17]))
    assert [step for step, _ in bigram.shifts(run, tmp_path / "walk", k=7, **pairs._asdict())] == [0, 1, 2, 3]
    found = records.read_walk(tmp_path / "walk", Shifts)
    for step in run.snapshots:
        entry = bigram.entries(*pairs, *bigram.decoder_matrices(run.graph, run.params(step)))
        assert bigram.telescope(found, step, entry) < 1e-12
    assert float(found.missed.max()) < 1e-5 < float(found.value().abs().min())
    counts = bigram.count_pairs(PLANTED.train, len(PLANTED.vocab))
    net = list(bigram.net_changes(run.graph, run.params(0), run.params(4), counts, 2, most=1))
    change = torch.sub(*(bigram.decoder(*bigram.decoder_matrices(run.graph, run.params(t))).double() for t in (4, 0)))
    assert abs(net[0].after - net[0].before) == pytest.approx(float(change.abs().max()), rel=1e-4)


@some
@given(drawn=st.integers(1, 3).flatmap(lambda n: uses(n, (4, 3), 1)), ids=st.lists(st.integers(0, 3), max_size=5))
def test_rows_of_any_factor_are_those_of_what_it_forms(drawn: Any, ids: list[int]) -> None:
    factor, chosen = factor_of(drawn), torch.tensor(ids, dtype=torch.int64)
    assert torch.equal(_split.datum_rows(factor, chosen), per_example.form(factor)[:, chosen])


# ---- the embedding's scale


@pytest.mark.parametrize("kind, scale", [("GPT2", 1), ("GPTNeoX", 1), ("Llama", 1), ("Gemma", math.sqrt(8))])
def test_hugging_face_models_scale_as_their_code_says(kind: str, scale: float) -> None:
    made = traced(model := hugging_face(kind), model.init(0))
    assert bigram.embedding_scale(made) == pytest.approx(scale, rel=1e-6)


def test_the_post_s_model_scales_by_the_root_of_its_width() -> None:
    model = models.transformer(models.Config(V, d_model=6, n_heads=2, d_hidden=4, n_layers=1))
    assert bigram.embedding_scale(traced(model, model.init(0))) == pytest.approx(math.sqrt(6))


ROOT = torch.tensor(5.0).sqrt()
WAYS = {
    "as it is": (lambda e, w: e, 1.0),
    "times a number": (lambda e, w: e * 3, 3.0),
    "a number times it": (lambda e, w: -2.5 * e, -2.5),
    "divided": (lambda e, w: e / 4, 0.25),
    "by a constant tensor": (lambda e, w: e * ROOT, 5**0.5),
    "by it a constant tensor": (lambda e, w: ROOT * e, 5**0.5),
    "twice, reshaped in between": (lambda e, w: (e[None] * 3).mT.reshape(3, -1).T / 2, 1.5),
    "after dropout": (lambda e, w: F.dropout(e, 0.25, training=True) * 3, 3.0),
}


@pytest.mark.parametrize("name", WAYS)
def test_where_the_direct_path_is_all_there_is_it_gives_the_logits(name: str) -> None:
    way, scale = WAYS[name]
    params = {"E": torch.randn(V, 3, generator=torch.Generator().manual_seed(0)), "U": torch.eye(V)[:, :3], "w": ROOT}

    def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(way(params["E"][x], params["w"]) @ params["U"].T, y)

    made = graph.of(loss, params, *torch.zeros(2, 4, dtype=torch.int64))
    assert bigram.embedding_scale(made) == pytest.approx(scale)
    tokens = torch.arange(8).view(2, 4)
    logits = graph.decode(made, params, graph.streams(made, params, (tokens,)).flatten(0, 1))
    W_UE = bigram.decoder(*bigram.decoder_matrices(made, params))
    torch.testing.assert_close(logits, scale * W_UE.T[:8])


NOT_CONSTANT = {
    "added": lambda e, w: (e + 1) * 3,
    "multiplied by a parameter": lambda e, w: e * w * 3,
    "multiplied by itself": lambda e, w: e * e * 3,
    "divided into": lambda e, w: 2 / e,
    "by numbers that differ": lambda e, w: e * torch.tensor([1.0, 2.0, 3.0]) * 3,
    "read by two": lambda e, w: e * 3 + e,
    "halved in whole numbers": lambda e, w: torch.div(e, 2, rounding_mode="floor"),
}


@pytest.mark.parametrize("name", NOT_CONSTANT)
def test_what_is_no_constant_factor_is_no_scale(name: str) -> None:
    params = {"E": torch.rand(V, 3) + 1, "U": torch.eye(V)[:, :3], "w": ROOT}

    def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(NOT_CONSTANT[name](params["E"][x], params["w"]) @ params["U"].T, y)

    made = graph.of(loss, params, *torch.zeros(2, 4, dtype=torch.int64))
    assert bigram.embedding_scale(made) == 1


# ---- correlations


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_model_after_one_token_is_the_network_s(kind: str) -> None:
    model = hugging_face(kind, dropout=0.0)
    params = double(model)
    read = _correlations.one_token(traced(model, params), params)
    U, _ = bigram.decoder_matrices(traced(model, params), params)
    for token in range(V):
        logits = U @ read[token]
        loss = model.loss(params, torch.tensor([token]), torch.tensor([3]))
        assert float(logits.logsumexp(0) - logits[3]) == pytest.approx(float(loss), abs=1e-9)


def test_a_model_without_a_bias_has_every_other_measure() -> None:
    model = hugging_face("GPT2")
    params, data = double(model), texts(20)
    counts = bigram.count_pairs(data.tokens.flatten(), V)
    sets = bigram.pair_sets(counts, 1, 10, key=0)
    found = [c.measure for c in bigram.correlations(traced(model, params), params, counts, sets, data.tokens, key=0)]
    paths = ["direct path", "direct path, centred", "whole model, centred"]
    assert found == ["mean logit", "mean of the direct path", *(path for path in paths for _ in sets)]


# ---- who has none


class Picture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.filters, self.classes = nn.Conv2d(1, 2, 3), nn.Linear(8, V)

    def forward(self, x: Tensor) -> Tensor:
        return self.classes(self.filters(x).relu().flatten(-3))


def words(width: int, head: int) -> nn.Module:
    return nn.Sequential(nn.Embedding(V, width), nn.Linear(width, head), nn.Linear(head, V))


@pytest.mark.parametrize(
    "module, x, entropy, message",
    [
        (Picture(), torch.zeros(1, 4, 4), True, "looked up in no table of embeddings"),
        (words(3, 3), torch.zeros(4, dtype=torch.int64), False, "has no head"),
        (words(3, 2), torch.zeros(4, dtype=torch.int64), True, r"2.weight is \(11, 2\) and its embedding 0.weight is"),
    ],
)
def test_a_model_without_a_bigram_decoder_is_told_why(
    module: nn.Module, x: Tensor, entropy: bool, message: str
) -> None:
    def loss(model: Any, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y) if entropy else model(x).square().mean()

    model = models.module(module, loss)
    params = model.init(0)
    made = graph.of(model.loss, params, x, torch.zeros(x.shape[:1] if x.ndim == 1 else (), dtype=torch.int64))
    for ask in (bigram.decoder_units, bigram.capture_units, bigram.embedding_scale):
        with pytest.raises(ValueError, match=message):
            ask(made)
    with pytest.raises(ValueError, match=message):
        bigram.decoder_matrices(made, params)


def test_losses_of_classes_need_a_head() -> None:
    model = models.module(words(3, 3), lambda model, x, y: model(x).square().mean())
    params, data, n = model.init(0), texts(), torch.zeros(3, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="has no head"):
        bigram.class_losses(traced(model, params), params, bigram.ClassTexts(torch.arange(3), *data, n, 1))
