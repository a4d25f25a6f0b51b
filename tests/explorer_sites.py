"""Small runs with an index, for tests of the explorer: made once for a process of tests."""

from functools import cache
from pathlib import Path

import torch
from run_builders import recorded
from torch.nn.functional import cross_entropy

from devinterp_func import models, optim, records, text
from devinterp_func.models import Config
from devinterp_func.records import Dataset, Recording
from devinterp_func.show import explorer
from devinterp_func.training import Recipe

HOSTILE = {  # words of the planted text -> what stands in their place
    "c00": "<script>alert(1)</script>",
    "c01": "$x$",
    "c02": '"',
    "c03": "'><img src=x onerror=alert(2)>",
    "c04": "\ud800",
    "c05": "\x00\x1b[31m",
    "c06": "../..\\",
    "c07": "`a` [b](https://example.org)",
    "c08": "{{ 7 * 7 }} {% raw %} ${8}",
    "c09": "&amp;",
    "c10": "\u202eabc",
    "c11": "12",
}
PLANTED = text.planted(key=0, n_tokens=2400)
CORPUS = PLANTED._replace(vocab=text.Vocab(tuple(HOSTILE.get(word, word) for word in PLANTED.vocab.tokens)))
MODEL = models.transformer(Config(len(CORPUS.vocab), d_model=12, n_heads=2, d_hidden=8, n_layers=2))
TEXTS = Recipe(
    context=10, batch_size=7, epochs=2, n_steps=46, optimizer=optim.adamw(weight_decay=0.1), lr=0.01, max_norm=0.5
)
EXACT = Recipe(batch_size=7, epochs=3, n_steps=15, lr=1.0)
_made: dict[str, explorer.Site] = {}


def site(folder: Path) -> explorer.Site:
    """A transformer on planted text, some of whose words are hostile; each datum is seen in one or two steps.

    Args:
        folder: where the run is put when it is made; of the whole session, such as ``getbasetemp()``.
    """
    return _once("texts", folder, CORPUS, MODEL, TEXTS)


def site_of_numbers(folder: Path) -> explorer.Site:
    """A perceptron on numbers: a run whose data are no text."""
    x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    data = Dataset((x[:50], x[:50, :3].argmax(1)), valid=(x[50:], x[50:, :3].argmax(1)))
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))
    model = models.module(net, _loss, "perceptron")
    return _once("numbers", folder, data, model, EXACT, Recording(k=5, units=("*weight",), snapshot_every=5))


def _once(name, folder, data, model, recipe, recording=Recording(k=30, snapshot_every=10)):  # noqa: B008
    if name not in _made:
        run = recorded(Path(folder) / f"explorer-{name}", recipe, recording, data, model)
        for _ in explorer.build(run.path):
            pass
        _made[name] = explorer.open(run.path)
    return _made[name]


def _loss(net, x, y):
    return cross_entropy(net(x), y)


@cache
def everything(site):
    """Every outlier of a site's run by brute force: (step, row, datum, parameter, position, delta)."""
    found = []
    for step in range(site.n_steps):
        record = records.read(site.run, step)
        fields = (getattr(record.outliers, name).flatten().tolist() for name in ("datum", "parameter", "position"))
        for row, parameter, position, delta in zip(*fields, record.outliers.delta.flatten().tolist(), strict=True):
            found.append((step, row, int(record.datum[row]), parameter, position, delta))
    return found
