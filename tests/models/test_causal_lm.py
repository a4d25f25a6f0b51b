"""Hugging Face's causal language models: their own loss, their own weights, and nothing fetched or left behind."""

import json
import socket
import sys

import pytest
import torch
import torch.nn.functional as F
from small_transformers import exported, seeded
from torch.func import grad

from devinterp_func import keys, models

tf = pytest.importorskip("transformers", reason="needs transformers: pip install 'devinterp_func[hf]'")

SMALL = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 0}
WIDE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}


def gpt2(kind="eager", **more):
    return tf.GPT2Config(n_positions=16, n_embd=16, n_layer=2, n_head=4, attn_implementation=kind, **SMALL, **more)


def neox(kind="eager", **more):
    return tf.GPTNeoXConfig(max_position_embeddings=16, attn_implementation=kind, **WIDE, **SMALL, **more)


def llama(kind="eager", **more):
    more = {"num_key_value_heads": 2, "max_position_embeddings": 16} | more
    return tf.LlamaConfig(attn_implementation=kind, **WIDE, **SMALL, **more)


each_config = pytest.mark.parametrize("config", [gpt2, neox, llama])
each_attention = pytest.mark.parametrize("kind", ["eager", "sdpa"])


def network(config):
    """A model of transformers, as ``from_pretrained`` gives it."""
    return seeded(tf.AutoModelForCausalLM.from_config, config).eval()


def example(context=8):
    return seeded(lambda: (torch.randint(50, (context,)), torch.randint(50, (context,))))


def own_loss(net, tokens, targets):
    """As transformers counts it: the labels are moved by one, so the last target is given a place of its own."""
    logits = net(tokens[None]).logits[0]
    return -logits.log_softmax(-1)[torch.arange(len(tokens)), targets].mean()


# ---- the loss


@each_config
@each_attention
def test_loss_and_gradients_are_the_networks_own(config, kind):
    net = network(config(kind)).train()
    for dropout in (part for part in net.modules() if isinstance(part, torch.nn.Dropout)):
        dropout.p = 0.0
    model = models.causal_lm(net)
    value = own_loss(net, *example())
    params, own = model.init(0), dict(net.named_parameters())
    assert torch.allclose(model.loss(params, *example()), value, rtol=1e-5)
    found = grad(model.loss)(params, *example())
    expected = dict(zip(own, torch.autograd.grad(value, list(own.values())), strict=True))
    assert list(found) == list(expected)
    assert all(torch.allclose(found[name], expected[name], rtol=1e-3, atol=1e-6) for name in expected)


def test_training_mode_drops_out_as_the_network_does():
    net = network(gpt2())
    model = models.causal_lm(net)
    net.train()
    assert torch.allclose(seeded(model.loss, model.init(0), *example()), seeded(own_loss, net, *example()), rtol=1e-6)
    graph = exported(model.loss, model.init(0), *example()).graph
    sites = [node for node in graph.nodes if node.target is torch.ops.aten.dropout.default]
    assert [node.args[1:] for node in sites] == [(0.1, True)] * 7


@each_config
@each_attention
@pytest.mark.parametrize("given", [lambda config: config, network], ids=["config", "network"])
def test_its_graph_is_its_loss_and_shows_attention(config, kind, given):
    model = models.causal_lm(given(config(kind)))
    params = model.init(0)
    made = exported(model.loss, params, *example())
    assert torch.equal(seeded(made.module(), params, *example()), seeded(model.loss, params, *example()))
    assert sum(node.target is torch.ops.aten.softmax.int for node in made.graph.nodes) == 2


@each_config
def test_fused_attention_is_a_module_away(config):
    net = network(config("sdpa"))
    model = models.module(net, lambda m, x, y: F.cross_entropy(m(x[None], use_cache=False).logits[0], y))
    params = model.init(0)
    made = exported(model.loss, params, *example())
    fused = torch.ops.aten.scaled_dot_product_attention.default
    assert sum(node.target is fused for node in made.graph.nodes) == 2
    assert torch.allclose(made.module()(params, *example()), own_loss(net, *example()), rtol=1e-5)


@pytest.mark.parametrize("tie", [True, False])
def test_tied_weights_come_once_under_their_first_name(tie):
    shapes = models.causal_lm(gpt2(tie_word_embeddings=tie)).shapes
    assert next(iter(shapes)) == "transformer.wte.weight" and ("lm_head.weight" in shapes) != tie


@each_config
def test_a_context_beyond_the_positions_is_refused(config):
    model = models.causal_lm(config())
    assert model.loss(model.init(0), *example(16)).isfinite()
    with pytest.raises(ValueError, match="the example has 17 tokens, more than the model's 16 positions"):
        model.loss(model.init(0), *example(17))


def test_no_target_is_left_out():
    model, (tokens, targets) = models.causal_lm(gpt2()), example()
    targets[3] = -100
    with pytest.raises(IndexError, match="out of bounds"):
        model.loss(model.init(0), tokens, targets)


# ---- where it starts


def test_fresh_weights_are_a_function_of_the_key_alone(float64_by_default):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        state = torch.get_rng_state()
        model = models.causal_lm(gpt2())
        first = model.init(0)
        assert torch.equal(state, torch.get_rng_state())
    with torch.device("meta"):
        again, other = model.init(keys.Key(0)), models.causal_lm(gpt2()).init(1)
    assert {name: tuple(w.shape) for name, w in first.items()} == model.shapes
    assert all(torch.equal(w, again[name]) and w.dtype == torch.float32 for name, w in first.items())
    assert not torch.equal(first["transformer.wte.weight"], other["transformer.wte.weight"])
    assert first["transformer.wte.weight"].std().item() == pytest.approx(0.02, rel=0.1)


def test_later_changes_of_the_config_do_not_reach_the_model():
    config = gpt2()
    model = models.causal_lm(config)
    config.n_embd = 8
    assert model.init(0)["transformer.wte.weight"].shape == (50, 16)


def test_a_networks_own_weights_are_the_start_whatever_the_key():
    net = network(llama("sdpa")).to(torch.bfloat16)
    model = models.causal_lm(net)
    model.init(0)["lm_head.weight"].zero_()
    assert all(torch.equal(model.init(1)[name], w) for name, w in net.named_parameters())


def test_neither_network_nor_config_is_changed():
    config = gpt2("sdpa")
    said = config.to_dict()
    models.causal_lm(config)
    assert config.to_dict() == said and config._attn_implementation == "sdpa"
    net = network(config)
    before = {name: (w.clone(), id(w)) for name, w in net.named_parameters()}
    model = models.causal_lm(net)
    model.loss(model.init(0), *example())
    assert not any(part.training for part in net.modules()) and net.config._attn_implementation == "sdpa"
    assert all(torch.equal(before[name][0], w) and before[name][1] == id(w) for name, w in net.named_parameters())


# ---- from disk


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(params=[True, False], ids=["bars", "no bars"])
def talkative(request):
    """A caller who has chosen how much transformers says."""
    log = tf.utils.logging
    before = log.get_verbosity(), log.is_progress_bar_enabled()
    bars = {True: log.enable_progress_bar, False: log.disable_progress_bar}
    log.set_verbosity_info()
    bars[request.param]()
    yield
    assert (log.get_verbosity(), log.is_progress_bar_enabled()) == (log.INFO, request.param)
    log.set_verbosity(before[0])
    bars[before[1]]()


def test_a_directory_is_read_quietly_and_without_the_network(tmp_path, capfd, caplog, offline, talkative):
    net = network(gpt2())
    net.save_pretrained(tmp_path)
    capfd.readouterr()
    caplog.clear()
    for place in (tmp_path, str(tmp_path)):
        model = models.causal_lm(place)
        assert all(torch.equal(model.init(0)[name], w) for name, w in net.named_parameters())
    assert tuple(capfd.readouterr()) == ("", "") and not caplog.records
    assert str(tmp_path) not in json.dumps(model.source)


def test_half_precision_is_read_as_float32(tmp_path):
    network(llama()).half().save_pretrained(tmp_path)
    assert {w.dtype for w in models.causal_lm(tmp_path).init(0).values()} == {torch.float32}


def test_a_directory_that_lacks_weights_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    network(llama()).save_pretrained(tmp_path)
    kept = load_file(tmp_path / "model.safetensors")
    del kept["model.norm.weight"]
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="not all of the model's; missing are .'model.norm.weight'"):
        models.causal_lm(tmp_path)


def test_a_name_of_the_hub_is_not_fetched(offline):
    with pytest.raises(ValueError, match="there is no directory gpt2; a model is read from disk, never fetched"):
        models.causal_lm("gpt2")


# ---- built again


@each_config
def test_a_model_from_its_source_is_the_same(config):
    model = models.causal_lm(config())
    again = models.build(json.loads(json.dumps(model.source)))
    assert (again.name, again.shapes, again.source) == (model.name, model.shapes, model.source)
    params = model.init(3)
    assert all(torch.equal(w, again.init(3)[name]) for name, w in params.items())
    assert torch.equal(seeded(again.loss, params, *example()), seeded(model.loss, params, *example()))


def test_a_source_says_all_of_the_config():
    assert models.causal_lm(gpt2()).source["config"].keys() == gpt2().to_dict().keys() - {"_name_or_path"}


def test_weights_that_were_given_are_not_in_the_source():
    model = models.causal_lm(network(gpt2("sdpa", resid_pdrop=0.3)))
    again = models.build(json.loads(json.dumps(model.source)))
    params = model.init(0)
    assert (again.shapes, again.source) == (model.shapes, model.source)
    assert torch.equal(seeded(again.loss, params, *example()), seeded(model.loss, params, *example()))
    with pytest.raises(ValueError, match="weights that were given to it; they are in its first snapshot"):
        again.init(0)


def test_weights_of_another_dtype_do_not_matter_but_buffers_do():
    net = network(llama())
    for w in net.parameters():
        w.data = w.data.to(torch.bfloat16)
    models.build(models.causal_lm(net).source)
    with pytest.raises(ValueError, match="had other buffers than its config makes.*give it again"):
        models.build(models.causal_lm(net.to(torch.bfloat16)).source)


def frozen():
    net = network(gpt2())
    net.transformer.wpe.requires_grad_(False)
    return net


class Own(tf.GPT2LMHeadModel):
    """A class that transformers does not know."""


@pytest.mark.parametrize("net", [frozen, lambda: Own(gpt2())], ids=["frozen weights", "own class"])
def test_a_network_that_its_config_does_not_make_must_be_given_again(net):
    model = models.causal_lm(net())
    assert model.loss(model.init(0), *example()).isfinite()
    with pytest.raises(ValueError, match=":(GPT2LMHeadModel|Own) with the loss .*:causal_lm, .*; give it"):
        models.build(model.source)


@pytest.mark.parametrize("wrong", [3, torch.nn.Linear(2, 2)])
def test_other_things_are_refused(wrong):
    with pytest.raises(TypeError, match="must be a transformers config, a PreTrainedModel or a directory"):
        models.causal_lm(wrong)


def test_without_transformers_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r'pip install "devinterp_func\[hf\]"'):
        models.causal_lm(3)
