"""Small trainings to retrain: one of a loss that is linear in the weights, one of a quadratic loss, and of texts."""

import math

from run_builders import PLANTED
from strategies import graph_of

from devinterp_func import batches, graph, keys, models, training
from devinterp_func.credit import Window
from devinterp_func.models import Config
from devinterp_func.optim import Schedule
from devinterp_func.training import Recipe

CONSTANT = Schedule("constant")
CONFIG = Config(len(PLANTED.vocab), d_model=12, n_heads=2, d_hidden=8, n_layers=1)
MODEL, GRAPH = models.transformer(CONFIG), graph_of(CONFIG, context=10)
TEXTS = batches.chunk(PLANTED.train, 10)


def uniform(*shape, key):
    return keys.uniform(shape, -1.0, 1.0, key=keys.Key(key, ("windows",))).double()


def toy(loss, steps=8, n=5, lr=0.1, width=3, n_data=20, **recipe):
    """A window of a loss of (params, x, y) with one weight vector, from step 0."""
    params = {"w": uniform(width, key=1)}
    data = uniform(n_data, width, key=2), uniform(n_data, key=3)
    own = graph.of(loss, params, data[0][0], data[1][0])
    chosen = Recipe(context=1, batch_size=n, lr=lr, schedule=CONSTANT, epochs=9, **({"max_norm": math.inf} | recipe))
    return Window(own, params, chosen.optimizer.init(params), data, chosen, 0, steps)


def linear(**options):
    """Gradients do not depend on the weights, so nothing does on the order in which data act."""
    return toy(lambda p, x, y: p["w"] @ x, **options)


def quadratic(**options):
    return toy(lambda p, x, y: (p["w"] @ x - y) ** 2, **options)


def texts(steps=6, n=6, **recipe):
    """A transformer in float64 with dropout."""
    chosen = Recipe(context=10, batch_size=n, epochs=2, **recipe)
    params = {name: w.double() for name, w in training.initial(MODEL, chosen).items()}
    return Window(GRAPH, params, chosen.optimizer.init(params), TEXTS, chosen, 0, steps)
