"""The transformer is torch's, under torch's names, with masks as data."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import TorchModel, assert_close, relative_error, torch_masks, torch_model, tutorial_positions
from strategies import CONFIGS, LEAST, SMALL, batch, few, masks_of, seeds, weights
from torch import nn
from torch.func import vmap

from devinterp_func import keys, models, per_example, tree, units
from devinterp_func.models import Config

POST = Config(vocab_size=28_782)
each_config = pytest.mark.parametrize("config", [*CONFIGS, LEAST], ids=lambda config: f"width {config.d_model}")


def apply(params, tokens, config, masks=None):
    """Logits of a batch."""
    one = lambda tokens, masks: models.apply(params, tokens, config, masks)  # noqa: E731
    return vmap(one, (0, None if masks is None else 0))(tokens, masks)


def gradients(params, tokens, targets, config, masks=None):
    """Per-example gradients of ``models.loss``, by their definition."""

    def loss(params, tokens, targets, masks=None):
        return models.loss(params, tokens, targets, config, masks)

    return per_example.grads(loss)(params, tokens, targets, *([] if masks is None else [masks]))


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
    captured = units.choose(sizes)
    assert len(captured) == 12 and sum(sizes[name] for name in captured) == 720_000


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


def test_in_order_gives_inits_order():
    params = models.init(SMALL, key=0)
    backwards = dict(reversed(params.items()))
    ordered = models.in_order(backwards, SMALL)
    assert list(ordered) == list(params)
    assert all(ordered[name] is params[name] for name in params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.pop("layers.1.norm2.bias"), "differ in layers.1.norm2.bias"),
        (lambda p: p.update(extra=torch.zeros(1)), "differ in extra"),
        (lambda p: p.update({"decoder.bias": torch.zeros(3)}), r"decoder.bias has shape \(3,\).* wants \(11,\)"),
    ],
    ids=["missing", "unknown", "shape"],
)
def test_in_order_names_what_is_wrong(change, message):
    params = models.init(SMALL, key=0)
    change(params)
    with pytest.raises(ValueError, match=message):
        models.in_order(params, SMALL)


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
    with torch.random.fork_rng():
        torch.manual_seed(0)
        masks = torch_masks(model, tokens, config)
        losses = model.losses(tokens, targets)
        theirs = torch_gradients(losses, model)
    ours = vmap(lambda x, y, mask: models.loss(params, x, y, config, mask))(tokens, targets, masks)
    assert (ours - losses).abs().max() <= 1e-12
    found = gradients(params, tokens, targets, config, masks)
    assert max((found[name] - theirs[name]).abs().max().item() for name in theirs) <= 1e-10


def test_loss_is_the_mean_cross_entropy_of_the_logits():
    params, (tokens, targets) = weights(SMALL), batch(SMALL)
    logits = models.apply(params, tokens[0], SMALL)
    by_hand = -logits.log_softmax(-1)[torch.arange(5), targets[0]].mean()
    assert models.loss(params, tokens[0], targets[0], SMALL).item() == pytest.approx(by_hand.item(), rel=1e-14)


# ---- one example


@given(st.integers(0, 5), seeds)
@few
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


@pytest.mark.parametrize("masked", [False, True])
def test_vmap_is_the_loop(masked):
    params, (tokens, _) = weights(SMALL), batch(SMALL)
    masks = masks_of(SMALL, 3, 5) if masked else None
    for j, logits in enumerate(apply(params, tokens, SMALL, masks)):
        own = tree.map(lambda mask, j=j: mask[j], masks) if masked else None
        assert relative_error(logits, models.apply(params, tokens[j], SMALL, own)) <= 1e-13


def test_apply_changes_nothing_that_it_is_given():
    params, (tokens, _), masks = weights(SMALL), batch(SMALL, n=1), masks_of(SMALL, 1, 5)
    before = copy.deepcopy((params, tokens, masks))
    apply(params, tokens, SMALL, masks)
    assert all(
        torch.equal(a, b) for a, b in zip(tree.leaves((params, tokens, masks)), tree.leaves(before), strict=True)
    )


def test_a_tap_sees_every_operation_and_replaces_its_output():
    params, (tokens, _) = weights(SMALL), batch(SMALL, n=1)
    seen = []

    def tap(name, x, y):
        seen.append(name)
        return torch.zeros_like(y) if name == "layers.1.norm2" else y

    assert not models.stream(params, tokens[0], SMALL, tap=tap).any()
    below = {name for op in seen for name in units.weight_and_bias(op)} - {"embedding.bias"}
    assert below | {"decoder.weight", "decoder.bias"} == set(params)


# ---- dropout masks


def test_masks_have_a_shape_for_every_site():
    masks = models.dropout_masks(SMALL, 5, key=0)
    layer = {"self_attn.dropout": (2, 5, 5), "dropout1": (5, 8), "dropout": (5, 6), "dropout2": (5, 8)}
    sites = {f"layers.{i}.{site}": shape for i in range(2) for site, shape in layer.items()}
    assert {site: tuple(mask.shape) for site, mask in masks.items()} == {"dropout": (5, 8), **sites}
    assert all(mask.dtype == torch.bool for mask in masks.values())


@pytest.mark.parametrize("dropout", [0.0, 0.2, 0.9])
def test_masks_keep_at_the_given_rate(dropout):
    masks = models.dropout_masks(Config(vocab_size=2, dropout=dropout), 35, key=0)
    for mask in masks.values():
        deviation = math.sqrt(dropout * (1 - dropout) / mask.numel())
        assert abs(mask.double().mean().item() - (1 - dropout)) <= 5 * deviation + 2**-16


@given(seeds)
@few
def test_masks_are_a_function_of_the_key_alone(seed):
    first, again, other = (models.dropout_masks(SMALL, 5, key=key) for key in (seed, keys.Key(seed), seed + 1))
    assert all(torch.equal(first[site], again[site]) for site in first)
    assert any(not torch.equal(first[site], other[site]) for site in first)


def test_more_layers_leave_the_first_layers_masks_alone():
    few_layers, many = (models.dropout_masks(Config(9, n_layers=n), 7, key=0) for n in (1, 4))
    assert all(torch.equal(mask, many[site]) for site, mask in few_layers.items())


def test_stacked_masks_are_each_examples_own():
    ids = [keys.fold_in(0, "datum", j) for j in (7, 1, 7)]
    stacked = models.stacked_dropout_masks(SMALL, 5, each=ids)
    for j, key in enumerate(ids):
        own = models.dropout_masks(SMALL, 5, key=key)
        assert all(torch.equal(stacked[site][j], mask) for site, mask in own.items())


def test_no_masks_are_masks_without_dropout():
    config = Config(vocab_size=11, d_model=8, n_heads=2, d_hidden=6, n_layers=2, dropout=0.0)
    params, (tokens, _) = weights(config), batch(config)
    assert torch.equal(apply(params, tokens, config), apply(params, tokens, config, masks_of(config, 3, 5)))


def test_no_masks_switch_dropout_off():
    params, (tokens, _) = weights(SMALL), batch(SMALL)
    without = Config(vocab_size=11, d_model=8, n_heads=2, d_hidden=6, n_layers=2, dropout=0.0)
    assert torch.equal(apply(params, tokens, SMALL), apply(params, tokens, without))


@pytest.mark.parametrize("site", models.dropout_masks(SMALL, 5, key=0))
def test_every_mask_matters(site):
    params, (tokens, _), masks = weights(SMALL), batch(SMALL, n=1), masks_of(SMALL, 1, 5)
    flipped = masks | {site: ~masks[site]}
    assert not torch.allclose(apply(params, tokens, SMALL, masks), apply(params, tokens, SMALL, flipped))


def test_float32_stays_float32():
    params, (tokens, targets) = models.init(SMALL, key=0), batch(SMALL)
    assert apply(params, tokens, SMALL, masks_of(SMALL, 3, 5)).dtype == torch.float32
    assert gradients(params, tokens, targets, SMALL)["embedding.weight"].dtype == torch.float32
    assert_close(
        gradients(params, tokens, targets, SMALL),
        tree.map(lambda g: g.float(), gradients(tree.map(lambda w: w.double(), params), tokens, targets, SMALL)),
        1e-5,
    )
