"""Records and runs to test with: small, arbitrary to the bit, the same every time."""

from pathlib import Path

import numpy as np
import torch
from hypothesis import strategies as st
from safetensors import safe_open
from torch.utils._pytree import tree_leaves

from devinterp_func import models, records, text
from devinterp_func.models import Config
from devinterp_func.optim import Sizes
from devinterp_func.per_example import Outliers
from devinterp_func.records import StepRecord, _store

PLANTED = text.planted(key=0, n_tokens=3000)
SMALL = Config(len(PLANTED.vocab), d_model=12, n_heads=2, d_hidden=8, n_layers=2)
MODEL = models.transformer(SMALL)
MANIFEST = {"n_steps": 6, "seed": 0, "config": {"d_model": 8, "dropout": 0.2}}


def bits(shape, dtype, rng):
    """A tensor of arbitrary bits: every NaN and every subnormal included."""
    tensor = torch.empty(shape, dtype=dtype)
    raw = tensor.view(-1).view(torch.uint8)
    raw[:] = torch.from_numpy(rng.integers(0, 256, len(raw), dtype=np.uint8))
    return tensor


def step_record(
    step,
    n=2,
    k=3,
    per="datum",
    factors=(),
    loss=torch.float32,
    delta=torch.float32,
    position=torch.uint8,
    numbers=(5.0, 0.75, 0.5),
    units=2,
    seed=0,
):
    """A record whose tensors' bits are drawn from (seed, step); ``factors`` are (unit, name, C, width)."""
    rng = np.random.default_rng([seed, step])
    shape = (n, k) if per == "datum" else (k,)
    rows = torch.arange(n, dtype=torch.int16)[:, None].expand(n, k)
    found = Outliers(
        bits(shape, torch.int32, rng),
        bits(shape, delta, rng),
        bits(shape, position, rng),
        rows if per == "datum" else bits(shape, torch.int16, rng),
    )
    stored: dict[str, dict[str, torch.Tensor]] = {}
    for unit, name, context, width in factors:
        stored.setdefault(unit, {})[name] = bits((n, context, width), torch.float32, rng)
    lr, clip, grad_norm = numbers
    data, losses = bits((n,), torch.int64, rng), bits((n,), loss, rng)
    split = Sizes(bits((units, 3), torch.float32, rng), bits((units, 3), torch.float32, rng))
    missed, bound = bits((2, units), torch.float32, rng)
    made = (lr, clip, grad_norm, data, losses, split, missed, bound, found, stored)
    return StepRecord(step, step // 4, step % 4, *made)


def step_records(start, stop, **settings):
    return [step_record(step, **settings) for step in range(start, stop)]


def weights(step):
    """Float32 and bfloat16 weights, one of them not contiguous."""
    rng = np.random.default_rng([7, step])
    return {
        "layers.0.weight": bits((3, 4), torch.float32, rng).T,
        "layers.0.bias": bits((5,), torch.bfloat16, rng),
        "scale": bits((), torch.float64, rng),
    }


def build_run(run, manifest=MANIFEST, corpus=True, **settings):
    """A complete run of six steps in three shards, with weights at 0, 4 and 6 and evaluations at 4 and 6."""
    records.create(run, manifest)
    if corpus:
        _store.write_data(run, {"train": torch.arange(9), "vocabulary": torch.tensor(list(b"the\n<unk>"))})
    _store.write_params(run, 0, weights(0))
    records.write_shard(run, step_records(0, 2, **settings))
    records.write_shard(run, step_records(2, 4, **settings))
    _store.write_params(run, 4, weights(4))
    _store.write_evaluation(run, 4, {"valid_loss": 5.5, "valid_perplexity": 244.69})
    records.write_shard(run, step_records(4, 6, **settings))
    _store.write_params(run, 6, weights(6))
    _store.write_evaluation(run, 6, {"valid_loss": float("nan")})
    return run


def recorded(run, recipe, recording=records.Recording(), data=PLANTED, model=MODEL):  # noqa: B008
    """A run of a small model, trained and recorded to its end; opened with the model that made it."""
    for _ in records.record(run, data, model, recipe, recording):
        pass
    return records.open(run, model=model if model.source["kind"] == "module" else None)


def contents(run):
    """Every tensor of a run's files, as bytes."""
    found: dict[str, bytes] = {}
    for path in sorted(Path(run).rglob("*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors = {f"{path.relative_to(run)}:{k}": file.get_tensor(k) for k in file.keys()}
            found |= {name: x.reshape(-1).view(torch.uint8).numpy().tobytes() for name, x in tensors.items()}
    return found


def same_bits(a, b):
    """Whether two trees of tensors and numbers are equal in names, types, dtypes, shapes and every bit."""
    return _spelled(a) == _spelled(b)


def _spelled(tree):
    if isinstance(tree, dict):
        return {name: _spelled(part) for name, part in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree).__name__, [_spelled(part) for part in tree]
    if isinstance(tree, torch.Tensor):
        raw = tree.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)
        return str(tree.dtype), tuple(tree.shape), bytes(raw.tolist())
    return type(tree).__name__, np.float64(tree).tobytes() if isinstance(tree, float) else tree


def tensors_of(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def record_settings():
    """Settings of `step_record` that one run may have."""
    name = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/"), min_size=1, max_size=8)
    factor = st.tuples(name, st.sampled_from(["inputs", "signals"]), st.integers(0, 3), st.integers(0, 3))
    return st.fixed_dictionaries(
        {
            "n": st.integers(0, 3),
            "k": st.integers(0, 4),
            "per": st.sampled_from(["datum", "step"]),
            "factors": st.lists(factor, max_size=3, unique_by=lambda f: f[:2]),
            "loss": st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
            "delta": st.sampled_from([torch.float32, torch.float64, torch.float16]),
            "position": st.sampled_from([torch.uint8, torch.int16]),
            "numbers": st.tuples(st.floats(), st.floats(), st.floats()),
            "units": st.integers(0, 3),
            "seed": st.integers(0, 2**32),
        }
    )
