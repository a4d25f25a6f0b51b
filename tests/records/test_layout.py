"""Files in parts are safetensors files: that package reads them, and what it reads is what was written."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from run_builders import bits, same_bits
from safetensors.torch import load

from devinterp_func.records._layout import KINDS, file_parts, raw

shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=5).filter(lambda name: name != "__metadata__")


@given(st.dictionaries(names, st.tuples(shapes, st.sampled_from(list(KINDS))), max_size=6), st.integers(0, 99))
def test_what_is_read_is_what_was_written(kinds, seed):
    rng = np.random.default_rng(seed)
    tensors = {
        name: torch.from_numpy(np.asarray(rng.random(shape) < 0.5)) if kind == torch.bool else bits(shape, kind, rng)
        for name, (shape, kind) in kinds.items()
    }
    whole = b"".join(file_parts(tensors, {"said": 'of "this"\n'}))
    found = load(whole)
    assert found.keys() == tensors.keys()
    assert all(same_bits(found[name], tensor) for name, tensor in tensors.items())
    data = 8 + int.from_bytes(whole[:8], "little")
    assert data % 8 == 0 and len(whole) == data + sum(x.nbytes for x in tensors.values())


def test_a_tensor_is_written_from_its_own_memory():
    x = torch.zeros(3, 2)
    part = raw(x)
    x[1, 1] = 7.0
    assert bytes(part) == bytes(x.numpy().tobytes()) and raw(x[1:]).nbytes == 16


def test_a_dtype_that_has_no_name_is_refused():
    with pytest.raises(ValueError, match="w is torch.complex128, which safetensors does not store"):
        file_parts({"w": torch.zeros(1, dtype=torch.complex128)}, {})
