"""Attention of transformers' own models: patterns are what they put out, probes and their gradients are autograd's."""

import pytest
import torch

from devinterp_func import graph, models
from devinterp_func.credit import patterns, probes

tf = pytest.importorskip("transformers", reason="needs transformers: pip install 'devinterp_func[hf]'")

SMALL = {"vocab_size": 20, "bos_token_id": 0, "eos_token_id": 0, "attn_implementation": "eager"}
WIDE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, **SMALL}
CONFIGS = {
    "GPT-2": lambda: tf.GPT2Config(n_positions=16, n_embd=16, n_layer=2, n_head=4, **SMALL),
    "Llama": lambda: tf.LlamaConfig(num_key_value_heads=2, max_position_embeddings=16, **WIDE),
}
TOKENS = torch.arange(30).view(5, 6) * 7 % 20


@pytest.fixture(scope="module", params=CONFIGS)
def case(request):
    """A network in float64, its parameters, its graph, and what it says that its heads attend to."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = tf.AutoModelForCausalLM.from_config(CONFIGS[request.param]()).double().eval()
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(5)  # at the start attention is even
    model = models.causal_lm(net)
    params = model.init(0)
    return net, params, graph.of(model.loss, params, TOKENS[0], TOKENS[0])


@pytest.mark.parametrize("pattern", [patterns.previous_token(TOKENS), patterns.same_token(TOKENS % 3)])
@pytest.mark.parametrize("layer, head", [(0, 0), (0, 3), (1, 2)])
def test_a_probe_is_the_networks_own_attention(case, pattern, layer, head):
    net, params, own = case
    eager = net(TOKENS, output_attentions=True).attentions[layer][:, head]
    asked = [(t, q) for t in range(5) for q in range(6) if pattern[t, q].any()]
    expected = sum(eager[t, q][pattern[t, q]].sum() for t, q in asked) / len(asked)
    value, gradient = probes.attention(own, (TOKENS,), pattern, layer, head).value_and_grad(params)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-6, atol=0, check_dtype=False)
    weights = dict(net.named_parameters())
    autograd = torch.autograd.grad(expected, [weights[name] for name in params], allow_unused=True)
    for name, slope in zip(params, autograd, strict=True):
        slope = torch.zeros_like(params[name]) if slope is None else slope
        torch.testing.assert_close(gradient[name], slope, rtol=1e-5, atol=1e-8)
    assert any(bool(g.any()) for g in gradient.values())


def test_all_heads_on_a_pattern_are_the_probes(case):
    _, params, own = case
    pattern = patterns.same_token(TOKENS % 3)
    found = patterns.attention(own, params, (TOKENS,), pattern)
    for layer in range(2):
        for head in range(4):
            value = probes.attention(own, (TOKENS,), pattern, layer, head).value(params)
            torch.testing.assert_close(found.value[layer, head], value, check_dtype=False)


def test_heads_that_are_not_there_are_named(case):
    *_, own = case
    previous = patterns.previous_token(TOKENS)
    with pytest.raises(ValueError, match=r"layer is 2; it must be in 0\.\.1"):
        probes.attention(own, (TOKENS,), previous, 2, 0)
    with pytest.raises(ValueError, match=r"head is 4; it must be in 0\.\.3"):
        probes.attention(own, (TOKENS,), previous, 0, 4)
