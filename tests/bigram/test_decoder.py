"""Laws of the bigram decoder, its shifts and their exact top k, against the dense matrix sorted whole."""

from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor
from torch.func import vmap
from torch.utils._python_dispatch import TorchDispatchMode

from devinterp_func import bigram, keys
from devinterp_func.bigram import _decoder, _split
from devinterp_func.per_example import Lookup, Outer

small = settings(max_examples=80, deadline=None)
DTYPES = [torch.float32, torch.float64]
Matrices = tuple[Tensor, Tensor, Tensor, Tensor]  # W_U, W_E, dW_U, dW_E


def four(stacked: Tensor) -> Matrices:
    return stacked[0], stacked[1], stacked[2], stacked[3]


@st.composite
def integer_matrices(draw: st.DrawFn, max_tokens: int = 7) -> Matrices:
    """Small integers, so that all arithmetic is exact and ties abound; some rows of the updates zero."""
    V, d = draw(st.integers(1, max_tokens)), draw(st.integers(1, 5))
    numbers = draw(arrays(np.int8, (4, V, d), elements=st.integers(-3, 3)))
    numbers[2:] *= draw(arrays(np.int8, (2, V, 1), elements=st.integers(0, 1)))
    dtype = draw(st.sampled_from(DTYPES))
    return four(torch.from_numpy(numbers).to(dtype))


@st.composite
def float_matrices(draw: st.DrawFn) -> Matrices:
    """Any numbers in [-2, 2], tiny and subnormal ones too."""
    V, d = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    kind, elements = draw(st.sampled_from([("f4", st.floats(-2, 2, width=32)), ("f8", st.floats(-2, 2))]))
    numbers = draw(arrays(kind, (4, V, d), elements=elements))
    return four(torch.from_numpy(numbers))


def random_matrices(V: int, d: int, dtype: torch.dtype = torch.float64, *, seed: int = 0) -> Matrices:
    return four(torch.from_numpy(keys.generator(seed).standard_normal((4, V, d))).to(dtype))


def a_step(V: int = 28_782, d: int = 200, positions: int = 700, *, seed: int = 0) -> Matrices:
    """Made to look like a step of SGD: Zipf's law in tokens and norms, streams that share a direction."""
    rng = keys.generator(keys.fold_in(seed, "a_step"))
    frequency = 1 / np.arange(2, V + 2)
    frequency /= frequency.sum()
    grown = 1 + (frequency / frequency[0]) ** 0.3
    W_U, W_E = (rng.uniform(-0.1, 0.1, (V, d)) * grown[:, None] for _ in range(2))
    stream = rng.standard_normal((positions, d)) + 2 * rng.standard_normal(d)
    stream *= np.sqrt(d) / np.linalg.norm(stream, axis=1, keepdims=True)
    tokens, targets = rng.choice(V, (2, positions), p=frequency)
    rate = 5.0 * 0.7 / positions
    dW_U = -rate * np.outer(frequency, stream.sum(0))
    np.add.at(dW_U, targets, rate * stream)
    dW_E = np.zeros((V, d))
    np.add.at(dW_E, tokens, 0.003 * rng.standard_normal((positions, d)))
    for x in (W_U, dW_U):
        x[V // 9] = x[0]  # two output tokens alike: ties, which the index decides
    return four(torch.from_numpy(np.stack([W_U, W_E, dW_U, dW_E])).float())


def permute(matrices: Matrices, new: Tensor) -> Matrices:
    """Row i becomes row new[i]."""
    return four(torch.stack(matrices)[:, new.argsort()])


def full_sort(dense: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Flat index and value of the k largest entries, ties by index: the brute-force oracle."""
    order = sorted(range(dense.numel()), key=lambda flat: (-abs(dense.flatten()[flat].item()), flat))[:k]
    return torch.tensor(order), dense.flatten()[order]


def dense_shift(W_U: Tensor, W_E: Tensor, dW_U: Tensor, dW_E: Tensor) -> Tensor:
    W_U, W_E, dW_U, dW_E = W_U.double(), W_E.double(), dW_U.double(), dW_E.double()
    return (W_U + dW_U) @ (W_E + dW_E).T - W_U @ W_E.T


def entries(output: Tensor, input: Tensor, value: Tensor) -> set[tuple[int, int, float]]:
    return set(zip(output.tolist(), input.tolist(), value.tolist(), strict=True))


def flat_index(top: bigram.TopShifts, V: int) -> Tensor:
    return top.output * V + top.input


# ---- the definition


@small
@given(integer_matrices())
def test_the_shift_is_the_change_of_the_decoder(matrices: Matrices) -> None:
    W_U, W_E, dW_U, dW_E = matrices
    change = bigram.decoder(W_U + dW_U, W_E + dW_E) - bigram.decoder(W_U, W_E)
    assert torch.equal(bigram.shift(*matrices), change)


@small
@given(float_matrices())
def test_the_shift_is_the_change_of_the_decoder_but_for_rounding(matrices: Matrices) -> None:
    W_U, W_E, dW_U, dW_E = matrices
    change = bigram.decoder(W_U + dW_U, W_E + dW_E) - bigram.decoder(W_U, W_E)
    torch.testing.assert_close(bigram.shift(*matrices), change, rtol=0, atol=300 * torch.finfo(W_U.dtype).eps)


@small
@given(integer_matrices())
def test_the_terms_are_what_their_names_say(matrices: Matrices) -> None:
    W_U, W_E, dW_U, dW_E = (x.tolist() for x in matrices)
    terms = _decoder.terms(*matrices)
    for term, left, right in zip(terms, (W_U, dW_U, dW_U), (dW_E, W_E, dW_E), strict=True):
        loops = [[sum(x * y for x, y in zip(row, column, strict=True)) for column in right] for row in left]
        assert term.tolist() == loops


@given(st.integers(0, 100), st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_shifts_of_steps_add_up_to_the_change_over_a_run(seed: int, steps: int) -> None:
    rng = keys.generator(seed)
    W_U, W_E = torch.from_numpy(rng.standard_normal((2, 6, 3)))
    start, total = bigram.decoder(W_U, W_E), torch.zeros(6, 6, dtype=torch.float64)
    for _ in range(steps):
        dW_U, dW_E = torch.from_numpy(rng.standard_normal((2, 6, 3)))
        total += bigram.shift(W_U, W_E, dW_U, dW_E)
        W_U, W_E = W_U + dW_U, W_E + dW_E
    torch.testing.assert_close(total, bigram.decoder(W_U, W_E) - start)


def test_the_dense_functions_lift_with_vmap() -> None:
    runs = [random_matrices(5, 3, seed=seed) for seed in range(4)]
    lifted = vmap(bigram.shift)(*(torch.stack(x) for x in zip(*runs, strict=True)))
    torch.testing.assert_close(lifted, torch.stack([bigram.shift(*run) for run in runs]))


# ---- the exact top k


@small
@given(integer_matrices(), st.data())
def test_top_shifts_are_the_head_of_a_full_sort_ties_by_index(matrices: Matrices, data: st.DataObject) -> None:
    V = len(matrices[0])
    k = data.draw(st.integers(1, V * V))
    top = bigram.top_shifts(*matrices, k=k)
    index, value = full_sort(dense_shift(*matrices), k)
    assert torch.equal(flat_index(top, V), index) and torch.equal(top.value, value)


@small
@given(integer_matrices(), st.lists(st.sampled_from([-110, -60, 0, 40, 90]), min_size=4, max_size=4), st.data())
def test_top_shifts_are_exact_where_float32_under_or_overflows(
    matrices: Matrices, exponents: list[int], data: st.DataObject
) -> None:
    W_U, W_E, dW_U, dW_E = (x.float() * 2.0**e for x, e in zip(matrices, exponents, strict=True))
    k = data.draw(st.integers(1, len(W_U) ** 2))
    top = bigram.top_shifts(W_U, W_E, dW_U, dW_E, k=k)
    dense = bigram.shift(W_U.double(), W_E.double(), dW_U.double(), dW_E.double())
    index, value = full_sort(dense, k)
    torch.testing.assert_close(top.value, value, rtol=1e-14, atol=0)
    torch.testing.assert_close(top.value.abs(), dense.flatten()[flat_index(top, len(W_U))].abs(), rtol=1e-14, atol=0)


@small
@given(float_matrices(), st.data())
def test_top_shifts_of_any_numbers(matrices: Matrices, data: st.DataObject) -> None:
    V = len(matrices[0])
    k = data.draw(st.integers(1, V * V))
    top, dense = bigram.top_shifts(*matrices, k=k), bigram.shift(*(x.double() for x in matrices)).flatten()
    flat = flat_index(top, V)
    assert flat.unique().numel() == k
    torch.testing.assert_close(top.value, dense[flat], rtol=0, atol=1e-14)
    torch.testing.assert_close(top.value.abs(), dense.abs().sort(descending=True).values[:k], rtol=0, atol=1e-14)
    order = list(zip((-top.value.abs()).tolist(), flat.tolist(), strict=True))
    assert order == sorted(order)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 50, 5_000, 40_000])
def test_top_shifts_over_many_blocks(dtype: torch.dtype, k: int) -> None:
    matrices = random_matrices(200, 16, dtype)
    matrices[3][::2] = 0
    top, dense = bigram.top_shifts(*matrices, k=k), bigram.shift(*(x.double() for x in matrices)).flatten()
    torch.testing.assert_close(top.value, dense[flat_index(top, 200)], rtol=0, atol=1e-12)
    assert torch.equal(flat_index(top, 200), dense.abs().argsort(descending=True, stable=True)[:k])


@pytest.mark.parametrize("dtype", DTYPES)
def test_top_shifts_where_all_rows_are_alike(dtype: torch.dtype) -> None:
    W_U, W_E, dW_U, dW_E = (x.expand(150, 7).clone() for x in random_matrices(1, 7, dtype))
    top = bigram.top_shifts(W_U, W_E, dW_U, dW_E, k=400)
    assert torch.equal(flat_index(top, 150), torch.arange(400))
    assert top.value.unique().numel() == 1


def test_entries_nearer_than_float32_can_tell_apart_are_told_apart() -> None:
    V, k = 400, 700
    W_U, W_E, dW_U, dW_E = ((1 + 2e-7 * x).float() for x in random_matrices(V, 4))  # few bits: exact in float64
    top, dense = bigram.top_shifts(W_U, W_E, dW_U, dW_E, k=k), dense_shift(W_U, W_E, dW_U, dW_E).flatten()
    assert torch.equal(flat_index(top, V), dense.abs().argsort(descending=True, stable=True)[:k])


@small
@given(integer_matrices(), st.randoms(use_true_random=False))
def test_a_permutation_of_the_vocabulary_permutes_the_answer(matrices: Matrices, random: Random) -> None:
    V = len(matrices[0])
    new = torch.tensor(random.sample(range(V), V))
    before, after = bigram.top_shifts(*matrices, k=V * V), bigram.top_shifts(*permute(matrices, new), k=V * V)
    assert torch.equal(before.value.abs(), after.value.abs())
    assert entries(new[before.output], new[before.input], before.value) == entries(*after[:3])


def test_a_permutation_permutes_the_answer_bit_by_bit() -> None:
    matrices = random_matrices(100, 13, torch.float32)
    new = keys.permutation(100, key=3)
    before, after = bigram.top_shifts(*matrices, k=30), bigram.top_shifts(*permute(matrices, new), k=30)
    assert torch.equal(after.value, before.value)
    assert torch.equal(after.output, new[before.output]) and torch.equal(after.input, new[before.input])


def test_a_zero_update_gives_nothing() -> None:
    W_U, W_E, *_ = random_matrices(40, 3)
    top = bigram.top_shifts(W_U, W_E, 0 * W_U, 0 * W_E, k=50)
    assert not top.value.any() and torch.equal(flat_index(top, 40), torch.arange(50))
    assert top.certificate == bigram.Certificate(rows=0, columns=0, pairs=0, evaluated=50, bound=0.0)


@small
@given(integer_matrices(), st.data())
def test_the_terms_of_the_top_add_up_and_are_the_dense_ones(matrices: Matrices, data: st.DataObject) -> None:
    V = len(matrices[0])
    top = bigram.top_shifts(*matrices, k=data.draw(st.integers(1, V * V)))
    assert torch.equal(top.terms.total(), top.value)
    for at_pairs, dense in zip(top.terms, _decoder.terms(*matrices), strict=True):
        assert torch.equal(at_pairs, dense.double()[top.output, top.input])


@small
@given(integer_matrices(max_tokens=12), st.data())
def test_the_certificate_bounds_all_that_was_not_evaluated(matrices: Matrices, data: st.DataObject) -> None:
    V = len(matrices[0])
    top = bigram.top_shifts(*matrices, k=data.draw(st.integers(1, V * V)))
    assert (dense_shift(*matrices).abs() > top.certificate.bound).sum() <= top.certificate.evaluated
    assert top.certificate.bound <= top.value[-1].abs()


def test_the_matrix_is_never_formed() -> None:
    V, d, sizes = 3000, 2, [0]

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            sizes.append(result.numel() if isinstance(result, Tensor) else 0)
            return result

    with Watch():
        bigram.top_shifts(*random_matrices(V, d), k=10)
    assert max(sizes) <= 128 * V


@pytest.mark.parametrize("setting", ["medium", "high"])
def test_a_lower_matmul_precision_changes_nothing(setting: str) -> None:
    matrices = a_step(V=500, d=20, positions=100)
    expected = bigram.top_shifts(*matrices, k=20)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        top = bigram.top_shifts(*matrices, k=20)
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(flat_index(top, 500), flat_index(expected, 500)) and torch.equal(top.value, expected.value)


def test_parameters_may_require_gradients_and_are_left_alone() -> None:
    matrices = four(torch.nn.Parameter(torch.stack(random_matrices(30, 4))))
    copies = [x.detach().clone() for x in matrices]
    assert not bigram.top_shifts(*matrices, k=5).value.requires_grad
    assert all(torch.equal(x, copy) for x, copy in zip(matrices, copies, strict=True))


def test_top_shifts_of_a_step_of_real_size() -> None:
    V, k = 28_782, 100
    W_U, W_E, dW_U, dW_E = a_step()
    top = bigram.top_shifts(W_U, W_E, dW_U, dW_E, k=k)
    after, moved = (W_E + dW_E).T, dW_E.any(1).nonzero().squeeze(1)
    least = 0.999 * float(top.value[-1].abs())
    candidates = []  # every entry of the whole matrix, by blocks, that comes near the k-th
    for rows in torch.arange(V).split(1024):
        block = dW_U[rows] @ after
        block[:, moved] += W_U[rows] @ dW_E[moved].T
        near = torch.maximum(block.amax(1), -block.amin(1)) > least
        output, input = (block[near].abs() > least).nonzero(as_tuple=True)
        candidates.append(rows[near][output] * V + input)
    flat = torch.cat(candidates)
    w, e, dw, de = (x.double()[at] for x, at in zip((W_U, W_E, dW_U, dW_E), (flat // V, flat % V) * 2, strict=True))
    values = ((w + dw) * (e + de) - w * e).sum(1)
    order = values.abs().float().argsort(descending=True, stable=True)[:k]  # float32: so that equal rows tie
    torch.testing.assert_close(top.value, values[order], rtol=1e-9, atol=0)
    assert torch.equal(flat_index(top, V), flat[order])
    assert top.certificate.pairs < 0.01 * V * V and top.certificate.evaluated < 5000


# ---- per datum


@st.composite
def factored_steps(draw: st.DrawFn) -> dict[str, Tensor]:
    n, C, V, d, p = (draw(st.integers(1, most)) for most in (3, 4, 5, 3, 6))
    real = lambda *shape: torch.from_numpy(draw(arrays(np.int8, shape, elements=st.integers(-3, 3)))).double()  # noqa: E731
    token = lambda *shape: torch.from_numpy(draw(arrays(np.int64, shape, elements=st.integers(0, V - 1))))  # noqa: E731
    return dict(
        W_U=real(V, d), W_E=real(V, d), signal=real(n, C, V), stream=real(n, C, d), rows=real(n, C, d),
        tokens=token(n, C), output=token(p), input=token(p),
    )  # fmt: skip


def updates(step: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Each datum's update of W_U and W_E, dense, (n, V, d), one position at a time."""
    n, C, V = step["signal"].shape
    dW_U, dW_E = torch.zeros(2, n, *step["W_U"].shape, dtype=torch.float64)
    for j in range(n):
        for c in range(C):
            dW_U[j] += torch.outer(step["signal"][j, c], step["stream"][j, c])
            dW_E[j, step["tokens"][j, c]] += step["rows"][j, c]
    return dW_U, dW_E


def rows_of(step: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Rows of each datum's updates at the pairs, from factors."""
    dW_U = Outer(step["stream"], step["signal"])
    dW_E = Lookup(step["tokens"], step["rows"], len(step["W_E"]))
    return _split.datum_rows(dW_U, step["output"]), _split.datum_rows(dW_E, step["input"])


def split(step: dict[str, Tensor]) -> _split.DatumShifts:
    dW_U, dW_E = (_split.UpdateRows(rows, *0 * rows[:1].repeat(2, 1, 1)) for rows in rows_of(step))
    return _split.datum_shifts(step["output"], step["input"], step["W_U"], step["W_E"], dW_U, dW_E)


@small
@given(factored_steps())
def test_rows_are_those_of_the_dense_updates(step: dict[str, Tensor]) -> None:
    dW_U, dW_E = updates(step)
    dW_U_rows, dW_E_rows = rows_of(step)
    assert torch.equal(dW_U_rows, dW_U[:, step["output"]]) and torch.equal(dW_E_rows, dW_E[:, step["input"]])


@small
@given(factored_steps())
def test_amounts_of_the_data_and_the_cross_term_add_up_to_the_shift(step: dict[str, Tensor]) -> None:
    dW_U, dW_E = updates(step)
    shift = bigram.shift(step["W_U"], step["W_E"], dW_U.sum(0), dW_E.sum(0))
    assert torch.equal(split(step).total(), shift[step["output"], step["input"]])


@small
@given(factored_steps())
def test_a_datum_s_amounts_are_the_first_order_terms_of_its_own_update(step: dict[str, Tensor]) -> None:
    shifts, pairs = split(step), (step["output"], step["input"])
    for j, (dW_U, dW_E) in enumerate(zip(*updates(step), strict=True)):
        alone = _decoder.terms(step["W_U"], step["W_E"], dW_U, dW_E)
        assert torch.equal(shifts.embedding[j], alone.embedding[pairs])
        assert torch.equal(shifts.unembedding[j], alone.unembedding[pairs])


# ---- bad input

ROWS = _split.UpdateRows(torch.zeros(3, 2, 3), *torch.zeros(2, 2, 3))


@pytest.mark.parametrize(
    "name, bad, message",
    [
        ("W_U", torch.zeros(5), r"W_U has shape \(5,\); it must be \(V, d\)"),
        ("W_U", torch.zeros(0, 3), r"W_U has shape \(0, 3\); it must be \(V, d\) with V and d at least 1"),
        ("W_U", torch.zeros(5, 3, dtype=torch.int64), r"W_U is torch.int64; it must be torch.float32 or"),
        ("W_E", torch.zeros(4, 3), r"W_E has shape \(4, 3\); it must be \(5, 3\) as W_U has"),
        ("dW_U", torch.zeros(5, 2), r"dW_U has shape \(5, 2\); it must be \(5, 3\) as W_U has"),
        ("dW_E", torch.zeros(3, 5), r"dW_E has shape \(3, 5\); it must be \(5, 3\) as W_U has"),
        ("dW_E", torch.zeros(5, 3).double(), r"dW_E has dtype torch.float64; it must be torch.float32 as W_U has"),
    ],
)
@pytest.mark.parametrize("function", [bigram.shift, _decoder.terms, lambda **m: bigram.top_shifts(**m, k=1)])
def test_bad_matrices_are_named(
    unchecked: None, function: Callable[..., object], name: str, bad: Tensor, message: str
) -> None:
    matrices = dict.fromkeys(["W_U", "W_E", "dW_U", "dW_E"], torch.zeros(5, 3)) | {name: bad}
    with pytest.raises(ValueError, match=message):
        function(**matrices)


def test_decoder_names_a_bad_shape(unchecked: None) -> None:
    with pytest.raises(ValueError, match=r"W_E has shape \(3, 5\); it must be \(5, 3\) as W_U has"):
        bigram.decoder(torch.zeros(5, 3), torch.zeros(3, 5))


@pytest.mark.parametrize("name", ["W_U", "W_E", "dW_U", "dW_E"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_that_are_not_finite_are_named(name: str, bad: float, dtype: torch.dtype) -> None:
    matrices = {n: torch.ones(5, 3, dtype=dtype) for n in ["W_U", "W_E", "dW_U", "dW_E"]}
    matrices[name][4, 1] = bad
    with pytest.raises(ValueError, match=f"{name} has (nan|inf) in row 4; entries must be finite"):
        bigram.top_shifts(**matrices, k=3)


@pytest.mark.parametrize("k", [-1, 0, 26])
def test_k_out_of_range_is_named(k: int) -> None:
    with pytest.raises(ValueError, match=rf"k is {k}; it must be from 1 to V² = 25"):
        bigram.top_shifts(*random_matrices(5, 3), k=k)


@pytest.mark.parametrize(
    "name, bad, message",
    [
        ("output", torch.tensor([0, 5]), "output has tokens from 0 to 5; they must be in 0..4"),
        ("input", torch.tensor([-1, 2]), "input has tokens from -1 to 2; they must be in 0..4"),
        ("input", torch.tensor([1]), r"input has shape \(1,\); it must be \(2,\)"),
        ("W_E", torch.zeros(4, 3), r"W_E has shape \(4, 3\); it must be \(5, 3\)"),
        (
            "dW_U",
            ROWS._replace(present=torch.zeros(3, 2, 4)),
            r"dW_U.present has shape \(3, 2, 4\); it must be \(3, 2, 3\)",
        ),
        (
            "dW_E",
            ROWS._replace(present=torch.zeros(2, 2, 3)),
            r"dW_E.present has shape \(2, 2, 3\); it must be \(3, 2, 3\)",
        ),
        ("dW_U", ROWS._replace(past=torch.zeros(3, 3)), r"dW_U.past has shape \(3, 3\); it must be \(2, 3\)"),
        ("dW_E", ROWS._replace(decay=torch.zeros(2)), r"dW_E.decay has shape \(2,\); it must be \(2, 3\)"),
    ],
)
def test_bad_pairs_and_rows_are_named(unchecked: None, name: str, bad: Any, message: str) -> None:
    pairs, W = torch.tensor([0, 1]), torch.zeros(5, 3)
    good: dict[str, Any] = dict(output=pairs, input=pairs, W_U=W, W_E=W, dW_U=ROWS, dW_E=ROWS)
    with pytest.raises(ValueError, match=message):
        _split.datum_shifts(**(good | {name: bad}))


def test_results_are_short_to_read() -> None:
    matrices = random_matrices(100, 3)
    top = bigram.top_shifts(*matrices, k=50)
    rows = _split.UpdateRows(torch.zeros(4, 50, 3).double(), *torch.zeros(2, 50, 3).double())
    shifts = _split.datum_shifts(top.output, top.input, *matrices[:2], rows, rows)
    assert all(len(repr(result)) < 200 for result in (top, top.terms, top.certificate, shifts))
