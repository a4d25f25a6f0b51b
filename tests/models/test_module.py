"""Any module as a model: its loss is the module's own, and the module is left as it was."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from small_transformers import exported, seeded
from torch import nn
from torch.func import grad

from devinterp_func import models


class Tied(nn.Module):
    """Words out of the table that words go into."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.out = nn.Linear(4, 7, bias=False)
        self.out.weight = self.table.weight
        self.register_buffer("shift", torch.linspace(-1, 1, 4), persistent=False)

    def forward(self, tokens, *, scale):
        return self.out(torch.tanh(self.table(tokens) + self.shift) * scale)


class Frozen(nn.Module):
    """A map that is not trained below one that is."""

    def __init__(self):
        super().__init__()
        self.below, self.above = nn.Linear(3, 5), nn.Linear(5, 2)
        self.below.requires_grad_(False)

    def forward(self, x):
        return self.above(F.relu(self.below(x)))


class Counting(nn.Module):
    """Gives another value at every call."""

    calls: torch.Tensor

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x * self.weight * self.calls


def squared(model, x, y):
    return (model(x) - y).square().mean()


def image(model, x, y):
    return F.cross_entropy(model(x[None])[0], y)


def word(model, x, y):
    return F.cross_entropy(model(x, scale=2.0), y)


def sequence(model, x, y):
    return (model(x)[0] - y).square().mean()


def convolution():
    norm = nn.BatchNorm2d(4)
    norm.get_buffer("running_mean").copy_(torch.linspace(-1, 1, 4))
    norm.get_buffer("running_var").copy_(torch.linspace(1, 2, 4))
    return nn.Sequential(nn.Conv2d(2, 4, 3), norm.eval(), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(36, 5))


MADE = {  # a module, its loss, and an example
    "mlp": lambda: (nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Dropout(0.4), nn.Linear(8, 2)), squared, (3,), (2,)),
    "convolution": lambda: (convolution(), image, (2, 5, 5), 5),
    "lstm": lambda: (nn.LSTM(3, 4, 2, dropout=0.2), sequence, (6, 3), (6, 4)),
    "tied": lambda: (Tied(), word, 7, 7),
    "frozen": lambda: (Frozen(), squared, (3,), (2,)),
    "parametrized": lambda: (nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), squared, (3,), (2,)),
    "one batch's norm": lambda: (nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False)), sequence, (6, 2), (2,)),
}
each_module = pytest.mark.parametrize("made", MADE.values(), ids=MADE)


def drawn(shape):
    """An array of a shape, or for a number of classes some of them."""
    return torch.randint(shape, (6,) if shape == 7 else ()) if isinstance(shape, int) else torch.randn(shape)


def example_of(made):
    """A module, its loss and an example of it."""
    module, loss, x, y = seeded(made)
    return module, loss, seeded(lambda: (drawn(x), drawn(y)))


def everything(module):
    """What one can see of a module."""
    tensors = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}
    return (
        {name: (x.detach().clone(), x.requires_grad, id(x)) for name, x in tensors.items()},
        [(name, part.training, len(part._forward_hooks), sorted(vars(part))) for name, part in module.named_modules()],
    )


def alike(before, after):
    return before[1] == after[1] and all(
        torch.equal(x, after[0][name][0]) and rest == list(after[0][name][1:]) for name, (x, *rest) in before[0].items()
    )


@each_module
def test_loss_and_gradients_are_the_modules_own(made):
    module, loss, example = example_of(made)
    model = models.module(module, loss)
    params = model.init(0)
    own = {name: w for name, w in module.named_parameters() if w.requires_grad}
    value = seeded(loss, module, *example)
    assert torch.equal(seeded(model.loss, params, *example), value)
    found = seeded(grad(model.loss), params, *example)
    expected = dict(zip(own, torch.autograd.grad(value, list(own.values())), strict=True))
    assert list(found) == list(model.shapes) == list(expected)
    assert all(torch.allclose(found[name], expected[name], rtol=1e-5, atol=1e-7) for name in expected)


@each_module
def test_the_module_is_left_as_it_was(made):
    module, loss, example = example_of(made)
    before = everything(module)
    model = models.module(module, loss)
    grad(model.loss)(model.init(0), *example)
    assert alike(before, everything(module))
    assert all(w.grad is None for w in module.parameters())


@each_module
def test_later_changes_of_the_module_do_not_reach_the_model(made):
    module, loss, example = example_of(made)
    model = models.module(module, loss)
    expected = seeded(model.loss, model.init(0), *example)
    with torch.no_grad():
        for x in (*module.parameters(), *module.buffers()):
            x.add_(1)
    module.train(not module.training)
    assert torch.equal(seeded(model.loss, model.init(0), *example), expected)


@each_module
def test_its_graph_is_its_loss(made):
    module, loss, example = example_of(made)
    model = models.module(module.eval(), loss)
    graph = exported(model.loss, model.init(0), *example).module()
    assert torch.allclose(graph(model.init(0), *example), model.loss(model.init(0), *example), rtol=1e-6)


@each_module
def test_the_parameters_are_read_from_what_is_given(made):
    module, loss, example = example_of(made)
    model = models.module(module.eval(), loss)
    other = {name: w + 0.5 for name, w in model.init(0).items()}
    changed = copy.deepcopy(module)
    with torch.no_grad():
        for w in changed.parameters():
            if w.requires_grad:
                w.add_(0.5)
    assert torch.equal(model.loss(other, *example), loss(changed, *example))


def test_tied_parameters_come_once_under_their_first_name():
    model = models.module(Tied(), word)
    assert model.shapes == {"table.weight": (7, 4)}


def test_init_gives_new_clones_of_the_modules_weights_whatever_the_key():
    module = nn.Linear(3, 2)
    model = models.module(module, squared)
    first = model.init(0)
    assert all(torch.equal(first[name], w) and not first[name].requires_grad for name, w in module.named_parameters())
    first["weight"].zero_()
    assert torch.equal(model.init(1)["weight"], module.weight)


def test_mode_decides_dropout():
    module, loss, example = example_of(MADE["mlp"])
    params = models.module(module, loss).init(0)
    with torch.random.fork_rng():
        training, evaluating = (
            {models.module(module.train(mode), loss).loss(params, *example).item() for _ in range(9)}
            for mode in (True, False)
        )
    assert len(training) > 1 and len(evaluating) == 1


def test_the_source_says_what_the_module_is_but_cannot_build_it():
    model = models.module(Frozen(), squared)
    source = json.loads(json.dumps(model.source))
    assert source["class"].endswith("test_module:Frozen") and source["loss"].endswith("test_module:squared")
    with pytest.raises(ValueError, match="a module of .*:Frozen with the loss .*:squared, .*; give it"):
        models.build(source)


@pytest.mark.parametrize("name", ["below.weight", "below.bias"])
def test_the_source_tells_constants_apart(name):
    module = seeded(Frozen)
    before = models.module(module, squared).source
    assert models.module(copy.deepcopy(module), squared).source == before
    with torch.no_grad():
        module.above.weight.add_(1)
    assert models.module(module, squared).source == before
    module.get_parameter(name)[0] += 1
    assert models.module(module, squared).source != before


def test_the_source_tells_names_dtypes_shapes_and_modes_apart():
    buffers = [("a", torch.zeros(2)), ("b", torch.zeros(2)), ("a", torch.zeros(2).int()), ("a", torch.zeros(1, 2))]
    sources = [models.module(nn.Linear(2, 2).eval(), squared).source]
    for name, buffer in buffers:
        module = nn.Linear(2, 2)
        module.register_buffer(name, buffer)
        sources += [models.module(module.train(mode), squared).source for mode in (True, False)]
    assert all(a != b for i, a in enumerate(sources) for b in sources[:i])


def test_a_model_may_be_named():
    assert models.module(nn.Linear(3, 2), squared, name="line").name == "line"


# ---- what is refused


def integers():
    module = nn.Linear(2, 2)
    module.table = nn.Parameter(torch.arange(3), requires_grad=False)
    return module


@pytest.mark.parametrize(
    ("module", "error", "message"),
    [
        (nn.ReLU(), ValueError, "ReLU has no parameter that requires a gradient; call requires_grad_"),
        (nn.Linear(2, 2).requires_grad_(False), ValueError, "Linear has no parameter that requires a gradient"),
        (integers(), TypeError, "Linear's parameter table is torch.int64; only floats are trained: make it a buffer"),
        (nn.Sequential(nn.LazyLinear(2)), ValueError, "Sequential's 0.weight has no shape yet; call the module once"),
        (nn.Sequential(nn.LazyBatchNorm1d()), ValueError, "Sequential's 0.weight has no shape yet; call the module"),
        (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), ValueError, "Sequential's 1 updates its running stat"),
        (nn.BatchNorm1d(2), ValueError, "BatchNorm1d's norm updates .* evaluation mode, or use a layer or group norm"),
        (nn.InstanceNorm1d(2, affine=True, track_running_stats=True), ValueError, "updates its running statistics"),
    ],
    ids=["no parameters", "all frozen", "integers", "lazy", "lazy norm", "batch norm", "itself", "instance norm"],
)
def test_modules_without_a_loss_of_one_example_are_refused(module, error, message):
    with pytest.raises(error, match=message):
        models.module(module, squared)


def test_a_loss_that_changes_a_buffer_is_refused_in_eager_and_in_the_graph():
    module = Counting()
    model = models.module(module, squared)
    example = torch.ones(3), torch.zeros(3)
    for run in (model.loss, lambda *given: exported(model.loss, *given)):
        with pytest.raises(ValueError, match="the loss changes calls each time, .*; put that part in evaluation mode"):
            run(model.init(0), *example)
    assert module.calls == 0


def test_inference_mode_is_refused():
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        models.module(nn.Linear(2, 2), squared)
