"""Laws of other libraries' scores: where the truth is known they say it, and the networks are the library's models."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from small_transformers import CONFIGS, batch, weights
from strategies import graph_of
from torch import nn
from torch.func import functional_call, grad, hessian, vmap

from devinterp_func import keys, models, tree
from devinterp_func.credit import probes

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))  # where the scripts find each other

import rival_networks as networks  # noqa: E402
import rivals  # noqa: E402

N, QUERIES = 400, 4


def needs(name):
    return pytest.importorskip(name, reason=f"{name} comes with the extra [rivals]")


def normal(*shape, seed=0):
    return torch.from_numpy(keys.generator(keys.Key(seed, shape)).normal(size=shape)).float()


def logits(call, inputs):
    return call(inputs)


def fitted(module, x, y):
    """A module at the minimum of its mean cross entropy."""
    optimizer = torch.optim.LBFGS(module.parameters(), max_iter=500, tolerance_grad=1e-8, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(module(x), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    return {name: w.detach() for name, w in module.named_parameters()}


def exact(module, params, data, queries, damping):
    """−∇q (H + λ)⁻¹ ∇ℓ_j / N in float64, from the definition; λ as a share of H's mean eigenvalue."""
    params = {name: w.double() for name, w in params.items()}

    def loss(params, x, y):
        return F.cross_entropy(functional_call(module, params, (x,)), y)

    def each(x, y):
        found = vmap(grad(lambda p, x, y: loss(p, x[None], y[None])), (None, 0, 0))(params, x.double(), y)
        return torch.cat([g.flatten(1) for g in found.values()], 1)

    blocks = hessian(loss)(params, data[0].double(), data[1])
    rows = [torch.cat([b.reshape(w.numel(), -1) for b in blocks[name].values()], 1) for name, w in params.items()]
    H = torch.cat(rows)
    H = H + damping * H.trace() / len(H) * torch.eye(len(H), dtype=H.dtype)
    return -torch.stack([each(*q).mean(0) for q in queries]) @ torch.linalg.solve(H, each(*data).T) / len(data[0])


@pytest.fixture(scope="module")
def logistic():
    """Softmax regression at its minimum, its data and its queries, of which the first is of two data."""
    x, truth = normal(N + QUERIES + 1, 5), normal(5, 3)
    y = (x @ truth + normal(N + QUERIES + 1, 3, seed=1)).argmax(1)
    module = nn.Linear(5, 3)
    params = fitted(module, x[:N], y[:N])
    cuts = [slice(N, N + 2), *(slice(i, i + 1) for i in range(N + 2, N + QUERIES + 1))]
    return module, params, (x[:N], y[:N]), [(x[cut], y[cut]) for cut in cuts]


# ---- the truth is known


def test_of_a_convex_model_ekfac_and_trak_go_with_influence_functions(logistic):
    needs("kronfluence"), needs("dattri")
    module, params, data, queries = logistic
    own = networks.network(module, params, logits)
    damped, plain = (exact(module, params, data, queries, share) for share in (0.1, 1e-6))
    found, projected = rivals.ekfac(own, data, queries), rivals.trak(own, data, queries, size=12, damping=1e-4)
    for q in range(QUERIES):
        assert spearmanr(found[q], damped[q]).statistic > 0.6
        assert 0.7 < float((found[q] @ damped[q]) / (damped[q] @ damped[q])) < 1.3  # not rank alone: the size
        assert spearmanr(projected[q], plain[q]).statistic > 0.7


def test_where_its_form_is_the_truth_ekfac_is_exact():
    """Two classes and one-hot inputs: the Fisher is diagonal in the Kronecker basis. Only the labels are drawn."""
    needs("kronfluence")
    n = 4000
    kind = torch.arange(n) % 4
    share = torch.tensor([0.2, 0.4, 0.5, 0.7])[kind]
    y = (torch.from_numpy(keys.generator(3).random(n)).float() < share).long()
    x, module = F.one_hot(kind, 4).float(), nn.Linear(4, 2, bias=False)
    params, queries = fitted(module, x, y), [(x[:1], y[:1]), (x[:8], y[:8])]
    found = rivals.ekfac(networks.network(module, params, logits), (x, y), queries, batch_size=500)
    expected = exact(module, params, (x, y), queries, 0.1)
    assert float((found - expected).abs().max()) < 0.05 * float(expected.abs().max())


def test_trak_is_its_formula(logistic):
    """−∇q (Σ ∇f ∇fᵀ + λ)⁻¹ ∇ℓ_j with f = log p/(1 − p), unprojected, from torch.autograd."""
    needs("dattri")
    module, params, data, queries = logistic

    def gradients(x, y):
        rows = []
        for one, label in zip(x, y, strict=True):
            loss = F.cross_entropy(module(one[None]), label[None])
            parts = torch.autograd.grad(loss, list(module.parameters()))
            rows.append(torch.cat([part.flatten() for part in parts]).double())
        return torch.stack(rows)

    each = gradients(*data)
    p = module(data[0]).detach().softmax(-1)[torch.arange(N), data[1]].double()
    margins = each / (1 - p)[:, None]
    size = each.shape[1]
    kernel = margins.T @ margins + 1e-2 * size * torch.eye(size, dtype=torch.float64)
    expected = -torch.stack([gradients(*q).mean(0) for q in queries]) @ torch.linalg.solve(kernel, each.T)
    found = rivals.trak(networks.network(module, params, logits), data, queries, size=0, damping=1e-2)
    assert float((found - expected).abs().max()) < 1e-3 * float(expected.abs().max())


def test_texts_that_share_rare_words_overlap_most():
    needs("bm25s")
    data = torch.tensor([[1, 2, 3, 4], [1, 1, 5, 6], [1, 2, 7, 8], [1, 9, 5, 6]])
    found = rivals.bm25(data, [torch.tensor([[5, 6, 6, 9]]), torch.tensor([[1, 1, 1, 8], [40, 41, 42, 43]])])
    assert found.shape == (2, 4) and float(found.max()) <= 0
    assert found[0].argsort().tolist()[:2] == [3, 1]  # both 5 and 6, one of them 9 besides
    assert found[0][0] == found[0][2] == 0 and found[1].argmin() == 2


# ---- the networks are the library's models


@pytest.mark.parametrize("config", CONFIGS[:2], ids=["sincos", "sin"])
def test_the_posts_network_is_the_posts_model(config):
    params, (tokens, _) = weights(config, torch.float32), batch(config)
    own = networks.of_model(models.transformer(config), params)
    expected = torch.stack([models.apply(params, text, config) for text in tokens])
    torch.testing.assert_close(own.logits(own.module, tokens), expected, rtol=1e-4, atol=1e-5)
    parts = ("self_attn.in_proj", "self_attn.out_proj", "linear1", "linear2")
    layers = [f"layers.{i}.{part}" for i in range(config.n_layers) for part in parts]
    assert own.seen == [*layers, "decoder"]


def gpt2():
    library = pytest.importorskip("transformers")
    sizes: dict[str, Any] = {"n_embd": 8, "n_layer": 2, "n_head": 2, "vocab_size": 11, "n_positions": 6}
    config = library.GPT2Config(**sizes, bos_token_id=None, eos_token_id=None)
    return config, models.causal_lm(config)


def test_gpt2s_network_is_gpt2s_model():
    config, model = gpt2()
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    plain = models.causal_lm(config)
    params, (tokens, targets) = plain.init(3), batch(CONFIGS[0], 3, 6)
    own = networks.of_model(model, params)
    found = F.cross_entropy(own.logits(own.module, tokens).mT, targets, reduction="none").mean(1)
    expected = torch.stack([plain.loss(params, *example) for example in zip(tokens, targets, strict=True)])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert len(own.seen) == 4 * config.n_layer + 1 and own.seen[-1] == "lm_head"


CASES = {
    "a CNN": lambda: cnn_case(),
    "the post's": lambda: (networks.post(CONFIGS[0], weights(CONFIGS[0], torch.float32)), batch(CONFIGS[0], 24)),
    "GPT-2": lambda: gpt2_case(),
}


def cnn_case():
    module = pytest.importorskip("digits").CNN()
    data = normal(24, 8, 8), torch.arange(24) % 10
    params = {name: w.detach() for name, w in module.named_parameters()}
    return networks.network(module, params, lambda call, images: call(images[:, None])), data


def gpt2_case():
    config, model = gpt2()
    return networks.gpt2(config, model.init(3)), batch(CONFIGS[0], 24, 6)


@pytest.mark.parametrize("name", CASES)
def test_all_rivals_score_the_visits_of_every_kind_of_model(name):
    """A datum lowers its own loss; the same key gives the same numbers and leaves torch's generator alone."""
    needs("kronfluence"), needs("dattri"), needs("bm25s")
    own, data = CASES[name]()
    names: list[rivals.Rival] = ["ekfac", "trak", "bm25"] if data[0].ndim == 2 else ["ekfac", "trak"]
    datum = torch.tensor([[4, 7, 9, 11, 13, 15], [4, 8, 10, 12, 14, 16]])
    queries = [tuple(x[j : j + 1] for x in data) for j in (4, 9)] + [tuple(x[:3] for x in data)]
    before = torch.get_rng_state()
    found = rivals.rival_scores(names, own, data, datum, queries, key=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert list(found) == names
    for name_of, score in found.items():
        assert score.shape == (3, 2, 6) and score.dtype == torch.float64 and bool(score.isfinite().all())
        assert score[0, 0, 0] == score[0, 1, 0]  # datum 4, half of it in each visit
        assert float(score[0, 0, 0]) < 0 and float(score[1, 0, 2]) < 0  # of a datum's own loss
        if name_of != "trak":  # of three projected dimensions
            assert score[1].argmin() == 2  # datum 9
            assert float(score[0, 0, 0] * 2) < float(score[0, :, 1:].min())
    again = rivals.rival_scores(names, own, data, datum, queries, key=1)
    assert all(torch.equal(again[name], found[name]) for name in names)


def test_queries_are_the_data_of_probes_that_are_losses():
    graph = graph_of(CONFIGS[0], torch.float32, 5)
    data, token = batch(CONFIGS[0], 2), probes.bigram(graph, 1, 2)
    (found,) = rivals.queries_of([probes.loss(graph, data)])
    assert all(torch.equal(a, b) for a, b in zip(found, data, strict=True))
    with pytest.raises(ValueError, match=r"Probe\(bigram 2 → 1\) is no loss of data"):
        rivals.queries_of([probes.loss(graph, data), token])


# ---- bad input


def test_what_is_not_installed_is_named_with_its_extra(monkeypatch):
    data = torch.zeros(3, 2, dtype=torch.long)
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(ImportError, match=r'needs bm25s: pip install "devinterp_func\[rivals\]"'):
        rivals.bm25(data, [data])


def test_bad_names_queries_and_weights_are_refused():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    params = tree.map(lambda w: w.detach(), dict(module.named_parameters()))
    own, data = networks.network(module, params, logits), (torch.zeros(4, 2), torch.zeros(4, dtype=torch.long))
    datum = torch.tensor([[0, 1]])
    with pytest.raises(ValueError, match="'tfidf' is no rival; there are ekfac, trak, bm25"):
        rivals.rival_scores(["tfidf"], own, data, datum, [data])  # type: ignore[list-item]
    for score in (rivals.ekfac, rivals.trak):
        with pytest.raises(ValueError, match="no queries"):
            score(own, data, [])
    with pytest.raises(ValueError, match="size is 4; of 4 data it must be less"):
        rivals.trak(own, data, [data], size=4)
    with pytest.raises(ValueError, match="1.bias: of the weights or of the module, not of both"):
        networks.network(module, {name: w for name, w in params.items() if name != "1.bias"}, logits)
    with pytest.raises(ValueError, match="of a module that only you have"):
        networks.of_model(models.module(module, lambda m, x: m(x).sum()), params)
    with pytest.raises(ValueError, match="no linear map or convolution with at most 2048 outputs"):
        wide = nn.Linear(1, 3000)
        networks.network(wide, {name: w.detach() for name, w in wide.named_parameters()}, logits)
