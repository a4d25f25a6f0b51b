"""The one batched forward pass: what is seen and replaced on the way, against one example at a time."""

import pytest
import torch
from oracles import relative_error
from strategies import SMALL, batch, weights

from devinterp_func import models
from devinterp_func.models import Config
from devinterp_func.models import _forward as passes

PARAMS, TOKENS = weights(SMALL), batch(SMALL, n=7)[0]
OPERATIONS = [
    f"layers.{i}.{kind}" for i in range(2) for kind in ("self_attn.in_proj", "self_attn.out_proj", "linear1", "linear2")
]


def one_by_one(replace=None):
    """Stream, and input and output of every operation, of each example alone; ``replace(j, name, output)`` replaces."""
    streams, seen = [], []
    for j, example in enumerate(TOKENS):
        own: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

        def tap(name, x, y, j=j, own=own):
            own[name] = x, (y if replace is None else replace(j, name, y))
            return own[name][1]

        streams.append(models.stream(PARAMS, example, SMALL, tap=tap))
        seen.append(own)
    return torch.stack(streams), seen


def joined(parts):
    """The passes over some blocks as one."""
    parts = list(parts)
    seen = {name: tuple(torch.cat([part.seen[name][i] for part in parts]) for i in range(2)) for name in parts[0].seen}
    return torch.cat([part.stream for part in parts]), seen


def assert_close(found, expected):
    assert relative_error(found, expected) <= 1e-12


@pytest.mark.parametrize("positions", [1, 5, 11, 2**12], ids="{} positions at once".format)
def test_examples_together_are_examples_alone(monkeypatch, positions):
    monkeypatch.setattr(passes, "POSITIONS", positions)
    expected, seen = one_by_one()
    stream, watched = joined(models.forward(PARAMS, TOKENS, SMALL, watch=OPERATIONS))
    assert_close(stream, expected)
    assert_close(models.streams(PARAMS, TOKENS, SMALL), expected)
    assert list(watched) == OPERATIONS
    for name in OPERATIONS:
        for i in range(2):
            assert_close(watched[name][i], torch.stack([own[name][i] for own in seen]))


def test_blocks_say_which_examples_go_together(monkeypatch):
    monkeypatch.setattr(passes, "POSITIONS", 10)
    assert [part.rows for part in models.forward(PARAMS, TOKENS, SMALL)] == [slice(i, i + 2) for i in range(0, 8, 2)]
    chosen = [slice(4, 7), slice(0, 1)]
    parts = list(models.forward(PARAMS, TOKENS, SMALL, blocks=chosen))
    assert [part.rows for part in parts] == chosen
    assert_close(parts[0].stream, one_by_one()[0][4:7])
    assert parts[0].seen == {}


def test_no_examples_make_one_empty_pass():
    (part,) = models.forward(PARAMS, TOKENS[:0], SMALL, watch=["layers.0.linear1"])
    assert part.stream.shape == (0, 5, 8) and part.seen["layers.0.linear1"][1].shape == (0, 5, 6)
    assert models.streams(PARAMS, TOKENS[:0], SMALL).shape == (0, 5, 8)
    assert models.attention_patterns(PARAMS, TOKENS[:0], SMALL).shape == (0, 2, 2, 5, 5)


def test_a_tap_replaces_by_what_is_each_examples_own():
    factor = torch.linspace(-1, 2, 7).double()

    def tap(own):
        return lambda name, x, y: y * own if name == "layers.0.linear1" else y

    replaced = joined(models.forward(PARAMS, TOKENS, SMALL, tap=tap, extra=(factor,), watch=["layers.0.linear1"]))
    expected, seen = one_by_one(lambda j, name, y: y * factor[j] if name == "layers.0.linear1" else y)
    assert_close(replaced[0], expected)
    assert_close(replaced[1]["layers.0.linear1"][1], torch.stack([own["layers.0.linear1"][1] for own in seen]))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_resuming_is_running_all_with_the_output_replaced(operation):
    (part,) = models.forward(PARAMS, TOKENS, SMALL, watch=[operation, *models.resume_needs(operation)])
    datum = torch.tensor([6, 0, 6, 3])
    output = part.seen[operation][1][datum] * torch.tensor([0.0, 1.0, -2.0, 0.5]).double()[:, None, None]
    resumed = models.resume(PARAMS, SMALL, operation, output, part.seen, datum)
    for row, j in enumerate(datum.tolist()):
        replaced, _ = one_by_one(lambda k, name, y, j=j, row=row: output[row] if (k, name) == (j, operation) else y)
        assert_close(resumed[row], replaced[j])
    assert_close(resumed[1], part.stream[0])  # its own output in its place


def test_attention_patterns_are_the_softmax_by_loops():
    patterns = models.attention_patterns(PARAMS, TOKENS, SMALL)
    _, seen = one_by_one()
    for j in (0, 6):
        for layer in range(2):
            qkv = seen[j][f"layers.{layer}.self_attn.in_proj"][1]
            for head in range(2):
                query, key = qkv[:, head * 4 : head * 4 + 4], qkv[:, 8 + head * 4 : 8 + head * 4 + 4]
                for q in range(5):
                    exps = [torch.exp(query[q] @ key[k] / 2) if k <= q else torch.tensor(0.0) for k in range(5)]
                    expected = torch.stack([e / sum(exps) for e in exps]).double()
                    torch.testing.assert_close(patterns[j, layer, head, q], expected, rtol=1e-12, atol=1e-14)


def test_decoded_streams_are_the_logits():
    expected = torch.stack([models.apply(PARAMS, example, SMALL) for example in TOKENS])
    logits = models.decode(PARAMS, models.streams(PARAMS, TOKENS, SMALL).flatten(0, 1))
    assert_close(logits.view(7, 5, 11), expected)


@pytest.mark.parametrize(("n", "rows"), [(0, [0]), (1, [1]), (6, [3, 3]), (7, [3, 3, 1])])
def test_blocks_of_logits_fit(monkeypatch, n, rows):
    monkeypatch.setattr(passes, "LOGITS", 3 * 11 * 5 + 54)
    blocks = models.logit_blocks(torch.zeros(n, 5, dtype=torch.int64), SMALL)
    assert [len(range(n)[block]) for block in blocks] == rows
    assert torch.cat([torch.arange(n)[block] for block in blocks]).tolist() == list(range(n))


def test_a_datum_whose_logits_do_not_fit_goes_alone(monkeypatch):
    monkeypatch.setattr(passes, "LOGITS", 1)
    assert models.logit_blocks(torch.zeros(2, 5, dtype=torch.int64), SMALL) == [slice(0, 1), slice(1, 2)]


@pytest.mark.parametrize("bad", [-1, -100, 11])
def test_tokens_that_the_vocabulary_lacks_are_refused(bad):
    tokens = TOKENS.clone()
    tokens[3, 1] = bad
    for refused in (models.streams, models.attention_patterns, lambda *given: list(models.forward(*given))):
        with pytest.raises(ValueError, match=f"tokens hold the id {bad}; ids must be in 0..10"):
            refused(PARAMS, tokens, SMALL)
    with pytest.raises(IndexError, match="out of range"):  # one example: torch's own words
        models.apply(PARAMS, tokens[3], SMALL)
    with pytest.raises(IndexError, match="out of bounds"):
        models.loss(PARAMS, TOKENS[3], tokens[3], SMALL)


def test_a_model_of_one_layer_resumes_at_its_end():
    config = Config(5, d_model=4, n_heads=2, d_hidden=3, n_layers=1)
    params, (tokens, _) = weights(config), batch(config)
    (part,) = models.forward(
        params, tokens, config, watch=["layers.0.linear2", *models.resume_needs("layers.0.linear2")]
    )
    ids = torch.arange(3)
    resumed = models.resume(params, config, "layers.0.linear2", part.seen["layers.0.linear2"][1], part.seen, ids)
    assert_close(resumed, part.stream)
