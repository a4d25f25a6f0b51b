"""The transformer is torch's, under torch's names, with torch's dropout."""

import copy
import hashlib
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_transformers import (
    CONFIGS,
    LEAST,
    SMALL,
    TorchModel,
    batch,
    exported,
    seeded,
    torch_model,
    tutorial_positions,
    weights,
)
from torch import nn
from torch.func import grad, vmap

from devinterp_func import keys, models, tree
from devinterp_func.models import Config

POST = Config(vocab_size=28_782)
each_config = pytest.mark.parametrize("config", [*CONFIGS, LEAST], ids=lambda config: f"width {config.d_model}")


def apply(params, tokens, config):
    """Logits of a batch, without dropout."""
    return vmap(lambda x: models.apply(params, x, config))(tokens)


def gradients(params, tokens, targets, config):
    """Per-example gradients of ``models.loss`` without dropout, by their definition."""
    return vmap(grad(lambda p, x, y: models.loss(p, x, y, config, False)), (None, 0, 0))(params, tokens, targets)


def torch_gradients(losses, model):
    """The same from torch's model, one example after the other."""
    own = model.units()
    rows = [torch.autograd.grad(loss, list(own.values()), retain_graph=True) for loss in losses]
    return {name: torch.stack(column) for name, column in zip(own, zip(*rows, strict=True), strict=True)}


# ---- parameters


def test_the_posts_parameter_count_and_its_split():
    sizes = {name: math.prod(shape) for name, shape in models.shapes(POST).items()}
    assert sum(sizes.values()) == 12_267_582
    assert sizes["embedding.weight"] == sizes["decoder.weight"] == 5_756_400
    assert sizes["decoder.bias"] == 28_782
    assert sum(size for name, size in sizes.items() if name.startswith("layers.")) == 726_000


@each_config
def test_names_shapes_and_order_are_torchs(config):
    theirs = [(name, tuple(p.shape)) for name, p in TorchModel(config).units().items()]
    assert list(models.shapes(config).items()) == theirs
    assert [(name, tuple(w.shape)) for name, w in models.init(config, key=0).items()] == theirs


def test_embedding_and_decoder_start_within_a_tenth():
    params = models.init(Config(vocab_size=500, d_model=20), key=0)
    for name in ("embedding.weight", "decoder.weight"):
        assert 0.0999 < params[name].abs().max() <= 0.1
        assert params[name].std().item() == pytest.approx(0.1 / math.sqrt(3), rel=0.02)
    assert not params["decoder.bias"].any()


def test_layers_start_in_torchs_ranges():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block = nn.TransformerEncoderLayer(100, 2, 150)
    params = models.init(Config(vocab_size=2, d_model=100, n_heads=2, d_hidden=150, n_layers=1), key=0)
    for name, theirs in block.named_parameters():
        ours = params[f"layers.0.{name}"]
        assert ours.std(correction=0).item() == pytest.approx(theirs.std(correction=0).item(), rel=0.1), name
        assert ours.abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=0.05), name


@pytest.mark.parametrize("clone", [True, False])
def test_layers_start_alike_exactly_when_cloned(clone):
    params = models.init(SMALL, key=0, clone_layers=clone)
    drawn = [name for name, w in params.items() if name.startswith("layers.0.") and len(w.unique()) > 1]
    assert len(drawn) == 6
    for name in drawn:
        assert torch.equal(params[name], params[name.replace("layers.0", "layers.1")]) == clone


def test_parameters_are_all_different_draws():
    params = models.init(SMALL, key=0, clone_layers=False)
    starts = [tuple((w / w.abs().max()).flatten()[:4].tolist()) for w in params.values() if len(w.unique()) > 1]
    assert len(set(starts)) == len(starts)


def test_init_is_a_function_of_the_key_alone():
    first, again, other = (models.init(SMALL, key=key) for key in (0, keys.Key(0), 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])


@pytest.mark.parametrize(
    ("clone", "digest"),
    [
        (True, "59fd6ed0214d483b3e1f69a1cd07cde9f43e59fe33eaeecb8ebe869f1f1ab3f5"),
        (False, "1285d8321d32396e07e3851096dcce23ab48de1611926cc8d897668f4e82def4"),
    ],
)
def test_init_has_the_bits_that_it_always_had(clone, digest):
    total = hashlib.sha256()
    for name, w in models.init(SMALL, key=3, clone_layers=clone).items():
        total.update(name.encode() + w.numpy().tobytes())
    assert total.hexdigest() == digest


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        *((({name: 0}, f"Config.{name} is 0; it must be at least 1")) for name in ("d_model", "n_heads", "d_hidden")),
        *((({name: -1}, f"Config.{name} is -1; it must be at least 1")) for name in ("vocab_size", "n_layers")),
        ({"d_model": 10, "n_heads": 4}, "Config.d_model 10 is not divisible by n_heads 4"),
        ({"dropout": 1.0}, r"Config.dropout is 1.0; it must be in \[0, 1\)"),
        ({"dropout": -0.1}, r"Config.dropout is -0.1; it must be in \[0, 1\)"),
        ({"dropout": math.nan}, r"Config.dropout is nan; it must be in \[0, 1\)"),
    ],
)
def test_config_refuses_impossible_values(wrong, message):
    with pytest.raises(ValueError, match=message):
        Config(**({"vocab_size": 5} | wrong))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"d_model": 8.0}, "Config.d_model is 8.0; it must be an integer"),
        ({"n_layers": True}, "Config.n_layers is True; it must be an integer"),
        ({"vocab_size": None}, "Config.vocab_size is None; it must be an integer"),
        ({"dropout": "0.2"}, "Config.dropout is '0.2'; it must be a number"),
    ],
)
def test_config_refuses_other_types(unchecked, wrong, message):
    with pytest.raises(TypeError, match=message):
        Config(**({"vocab_size": 5} | wrong))


def test_config_keeps_pythons_own_numbers(unchecked):
    config = Config(np.int64(5), d_model=torch.tensor(8), dropout=np.float32(0.5))  # type: ignore[arg-type]
    assert config == Config(5, d_model=8, dropout=0.5)
    assert type(config.vocab_size) is type(config.d_model) is int and type(config.dropout) is float


def test_positions_are_one_of_two_kinds(unchecked):
    with pytest.raises(ValueError, match="Config.positions is 'rotary'; it must be 'sincos' or 'sin'"):
        Config(5, positions="rotary")  # type: ignore[arg-type]


# ---- positions


@pytest.mark.parametrize("kind", ["sincos", "sin"])
@pytest.mark.parametrize("d_model", [1, 2, 7, 200])
def test_positions_are_the_tutorials(kind, d_model):
    ours = models.position_encoding(Config(vocab_size=2, d_model=d_model, n_heads=1, positions=kind), 35)
    assert (ours - tutorial_positions(d_model, 35, kind)).abs().max() <= 1e-14


def test_sin_positions_have_the_sine_in_even_and_odd_columns():
    table = models.position_encoding(Config(vocab_size=2, positions="sin"), 35)
    assert torch.equal(table[:, 0::2], table[:, 1::2])
    assert not table[0].any()


# ---- parity with torch


@each_config
def test_logits_are_torchs(config):
    params, (tokens, _) = weights(config), batch(config)
    with torch.no_grad():
        theirs = torch_model(params, config)(tokens)
    assert (apply(params, tokens, config) - theirs).abs().max() <= 1e-12


@each_config
def test_per_example_gradients_are_torchs(config):
    params, (tokens, targets) = weights(config), batch(config)
    model = torch_model(params, config)
    theirs = torch_gradients(model.losses(tokens, targets), model)
    ours = gradients(params, tokens, targets, config)
    assert max((ours[name] - theirs[name]).abs().max().item() for name in theirs) <= 1e-10


@each_config
def test_losses_and_gradients_are_torchs_under_torchs_own_dropout(config):
    params, (tokens, targets) = weights(config), batch(config)
    model = torch_model(params, config).train()
    for x, y in zip(tokens, targets, strict=True):
        loss = seeded(model.losses, x[None], y[None])
        theirs = torch_gradients(loss, model)
        found = seeded(grad(models.transformer(config).loss), params, x, y)
        assert (seeded(models.transformer(config).loss, params, x, y) - loss).abs() <= 1e-12
        assert max((found[name] - theirs[name][0]).abs().max().item() for name in theirs) <= 1e-10


def test_loss_is_the_mean_cross_entropy_of_the_logits():
    params, (tokens, targets) = weights(SMALL), batch(SMALL)
    logits = models.apply(params, tokens[0], SMALL)
    by_hand = -logits.log_softmax(-1)[torch.arange(5), targets[0]].mean()
    assert models.loss(params, tokens[0], targets[0], SMALL, False).item() == pytest.approx(by_hand.item(), rel=1e-14)


# ---- one example


@given(st.integers(0, 5), st.integers(0, 2**16))
@settings(max_examples=25, deadline=None)
def test_logits_do_not_depend_on_later_tokens(position, seed):
    params, (tokens, others) = weights(SMALL), batch(SMALL, n=1, context=6, seed=seed)
    changed = torch.where(torch.arange(6) > position, others, tokens)[0]
    before, after = (models.apply(params, x, SMALL)[: position + 1] for x in (tokens[0], changed))
    assert (before - after).abs().max() <= 1e-13


def test_logits_depend_on_every_earlier_token():
    params, (tokens, _) = weights(SMALL), batch(SMALL, n=1, context=6)
    last = models.apply(params, tokens[0], SMALL)[-1]
    for k in range(6):
        changed = tokens[0].clone()
        changed[k] = (changed[k] + 1) % 11
        assert not torch.allclose(models.apply(params, changed, SMALL)[-1], last)


def test_vmap_is_the_loop():
    params, (tokens, _) = weights(SMALL), batch(SMALL)
    for example, logits in zip(tokens, apply(params, tokens, SMALL), strict=True):
        assert (logits - models.apply(params, example, SMALL)).abs().max() <= 1e-13


def test_the_loss_changes_nothing_that_it_is_given():
    params, (tokens, targets) = weights(SMALL), batch(SMALL, n=1)
    before = copy.deepcopy((params, tokens, targets))
    models.loss(params, tokens[0], targets[0], SMALL)
    pairs = zip(tree.leaves((params, tokens, targets)), tree.leaves(before), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("bad", [-1, -100, 11])
def test_tokens_and_targets_that_the_vocabulary_lacks_are_refused(bad):
    params, (tokens, _) = weights(SMALL), batch(SMALL, n=1)
    wrong = tokens[0].clone()
    wrong[2] = bad
    with pytest.raises(IndexError, match="out of range"):
        models.apply(params, wrong, SMALL)
    with pytest.raises(IndexError, match="out of bounds"):
        models.loss(params, tokens[0], wrong, SMALL)


def test_float32_stays_float32():
    params, (tokens, targets) = models.init(SMALL, key=0), batch(SMALL)
    found = gradients(params, tokens, targets, SMALL)
    expected = gradients(tree.map(lambda w: w.double(), params), tokens, targets, SMALL)
    assert apply(params, tokens, SMALL).dtype == torch.float32
    assert all(g.dtype == torch.float32 for g in found.values())
    assert all(torch.allclose(found[name].double(), expected[name], rtol=1e-4, atol=1e-6) for name in expected)


# ---- as a graph


def test_the_graph_has_torchs_dropout_sites_in_torchs_order():
    model, (tokens, targets) = models.transformer(SMALL), batch(SMALL)
    graph = exported(model.loss, model.init(0), tokens[0], targets[0]).graph
    dropped = [node for node in graph.nodes if node.target is torch.ops.aten.dropout.default]
    layer = [(2, 5, 5), (5, 8), (5, 6), (5, 8)]  # attention weights, attention branch, inside the MLP, MLP branch
    assert [tuple(node.meta["val"].shape) for node in dropped] == [(5, 8), *layer, *layer]
    assert all(node.args[1:] == (0.3, True) for node in dropped)


@pytest.mark.parametrize(
    "loss",
    [
        models.transformer(Config(11, d_model=8, n_heads=2, d_hidden=6, n_layers=2, dropout=0.0)).loss,
        lambda params, x, y: models.loss(params, x, y, SMALL, False),
    ],
    ids=["p = 0", "not training"],
)
def test_without_dropout_there_is_no_site(loss):
    tokens, targets = batch(SMALL)
    graph = exported(loss, weights(SMALL), tokens[0], targets[0]).graph
    assert not [node for node in graph.nodes if "dropout" in str(node.target)]


def test_every_parameter_is_read_by_a_plain_operation_and_its_graph_is_the_loss():
    tokens, targets = batch(SMALL)
    params = weights(SMALL)
    made = exported(lambda params, x, y: models.loss(params, x, y, SMALL, False), params, tokens[0], targets[0])
    assert (
        made.module()(params, tokens[1], targets[1]) - models.loss(params, tokens[1], targets[1], SMALL, False)
    ) == 0
    readers = [
        sorted(str(user.target) for user in node.users) for node in made.graph.nodes if node.op == "placeholder"
    ][: len(params)]
    plain = ("aten.linear.default", "aten.layer_norm.default", "aten.embedding.default")
    assert all(len(reader) == 1 and reader[0] in plain for reader in readers)


# ---- as a model


@each_config
def test_a_model_from_its_source_is_the_same(config):
    model, (tokens, targets) = models.transformer(config), batch(config)
    again = models.build(json.loads(json.dumps(model.source)))
    assert (again.name, again.shapes, again.source) == (model.name, model.shapes, model.source)
    assert all(torch.equal(w, again.init(7)[name]) for name, w in model.init(7).items())
    assert all(torch.equal(w, models.init(config, key=7)[name]) for name, w in model.init(7).items())
    losses = [seeded(one.loss, weights(config), tokens[0], targets[0]) for one in (model, again)]
    assert losses[0] == losses[1]


def test_a_model_says_what_it_is_in_a_line():
    assert repr(models.transformer(POST)) == "Model transformer: 12,267,582 parameters in 39 tensors"


@pytest.mark.parametrize("source", [{"kind": "jax"}, {}])
def test_a_source_of_no_known_kind_is_refused(source):
    with pytest.raises(ValueError, match="of kind .*; it must be 'transformer', 'causal_lm', 'module' or 'autocast'"):
        models.build(source)
