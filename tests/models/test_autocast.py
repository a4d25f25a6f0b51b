"""Models in bfloat16: what they compute, what is refused, and that they are built again from what is said of them."""

import json

import pytest
import torch
import transformers as tf
from rounded_models import MADE, SIZES, case

from devinterp_func import graph, models, per_example, tree

POST = MADE["post"]()[0]


@pytest.mark.parametrize("name", ["post", "MLP"])
def test_the_loss_is_that_under_autocast(name):
    own = case(*MADE[name]())
    example = tuple(x[0] for x in own.batch)
    with torch.autocast("cpu", torch.bfloat16):
        expected = own.model.loss(own.params, *example)
    found = own.rounded.loss(own.params, *example)
    assert torch.equal(found, expected) and not torch.equal(found, own.model.loss(own.params, *example))
    assert not torch.is_autocast_enabled("cpu")


def test_start_and_shapes_stay_and_the_name_says_it():
    rounded = models.autocast(POST)
    assert rounded.shapes == POST.shapes and rounded.name == "transformer in bfloat16"
    one, other = rounded.init(3), POST.init(3)
    assert all(torch.equal(one[name], w) and w.dtype == torch.float32 for name, w in other.items())


def test_it_is_built_again_from_its_source():
    gpt2 = models.causal_lm(tf.GPT2Config(**SIZES, n_embd=8, n_layer=1, n_head=2))
    for model in (POST, gpt2):
        source = json.loads(json.dumps(models.autocast(model).source))
        again, example = models.build(source), torch.arange(4)
        assert again.source == models.autocast(model).source and again.shapes == model.shapes
        traced = [graph.of(m.loss, m.init(0), example, example) for m in (again, models.autocast(model))]
        assert graph.fingerprint(traced[0]) == graph.fingerprint(traced[1])
        assert graph.fingerprint(traced[0]) != graph.fingerprint(graph.unrounded(traced[0]))


def test_a_module_is_asked_for_as_it_was():
    source = models.autocast(MADE["MLP"]()[0]).source
    with pytest.raises(ValueError, match=r"not stored with the run; give it: model=models.autocast\(models.module\("):
        models.build(source)
    with pytest.raises(ValueError, match="the model's source is in 'int4'; it must be one of bfloat16"):
        models.build(source | {"dtype": "int4"})


def test_other_dtypes_and_two_at_once_are_refused():
    with pytest.raises(ValueError, match="float16, in which small gradients become 0 .*; use torch.bfloat16"):
        models.autocast(POST, torch.float16)
    with pytest.raises(ValueError, match="dtype is torch.float64; it must be torch.bfloat16"):
        models.autocast(POST, torch.float64)
    rounded = models.autocast(POST)
    with pytest.raises(ValueError, match="the model is transformer in bfloat16 already"):
        models.autocast(rounded)
    example = torch.arange(4)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="within another torch.autocast"):
        rounded.loss(rounded.init(0), example, example)


def test_float16_in_a_loss_of_ones_own_is_refused_before_its_softmax():
    def loss(params, x, y):
        with torch.autocast("cpu", torch.float16, cache_enabled=False):
            return torch.nn.functional.cross_entropy((x @ params["w"].T)[None], y[None])

    params, x, y = {"w": torch.ones(3, 4)}, torch.ones(2, 4), torch.tensor([0, 1])
    with pytest.raises(TypeError, match="the head works in torch.float16, whose range is too small"):
        per_example.capture(graph.of(loss, params, x[0], y[0]), params, x, y)


def test_activations_and_logits_come_as_float32():
    own = case(*MADE["post"]())
    unit = "layers.0.linear2.weight"
    tokens = own.batch[:1]
    (some,) = graph.forward(own.graph, own.params, tokens, watch=[unit])
    assert (
        some.stream is not None
        and some.stream.dtype == torch.float32
        and all(x.dtype == torch.float32 for x in some.seen[unit])
    )
    plain = graph.of(own.model.loss, own.params, *(x[0] for x in own.batch))
    other = graph.streams(plain, own.params, tokens)
    assert 0 < float(tree.norm(some.stream - other) / tree.norm(other)) < 2.0**-4
    assert graph.decode(own.graph, own.params, some.stream.flatten(0, 1)).dtype == torch.float32
    assert graph.attention_patterns(own.graph, own.params, tokens).dtype == torch.float32


def test_an_activation_is_replaced_and_the_rest_goes_on_from_it():
    own = case(*MADE["post"]())
    unit, tokens = "layers.0.linear1.weight", own.batch[:1]
    needs = graph.resume_needs(own.graph, unit)
    (some,) = graph.forward(own.graph, own.params, tokens, watch=[unit], keep=needs)
    assert some.stream is not None
    n = len(some.stream)
    again = graph.resume(own.graph, own.params, unit, some.seen[unit][1], some.values, torch.arange(n))
    assert torch.equal(again, some.stream)
    values = torch.zeros(n, some.seen[unit][1].shape[1])
    output = some.seen[unit][1].clone()
    output[..., 2] = 0
    (other,) = graph.forward(own.graph, own.params, tokens, replace=graph.Replace(unit, "outputs", 2), values=values)
    assert other.stream is not None
    found = graph.resume(own.graph, own.params, unit, output, some.values, torch.arange(n))
    assert torch.equal(found, other.stream) and not torch.equal(found, some.stream)
