"""The bigram decoder and its shifts: which next tokens a step makes likelier after which, along the direct path.

    W_UE = W_U W_Eᵀ        ΔW_UE = W_U ΔW_Eᵀ + ΔW_U W_Eᵀ + ΔW_U ΔW_Eᵀ

Rows are output tokens, columns input tokens. The direct path runs from the embedding straight to the unembedding: it
leaves out the positions, the layer norms, attention, the MLPs and the unembedding's bias, and also the number by which
some models scale the embedding on its way in (multiply by ``embedding_scale`` to compare with logits).

Where the weights are tied, W_U and W_E are one tensor, and all of this holds with ΔW_U = ΔW_E.

Source: Appendix IV of *Training Process Transparency through Gradient Interpretability: Early Experiments on Toy
Language Models* (Krzyzanowski and Hubinger 2023).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK = 2048  # pairs evaluated in float64 at once

Matrix = Float[Tensor, "V d"]  # V tokens, d = d_model
PairRows = Float[Tensor, "p d"]  # at p pairs


class Terms(NamedTuple):
    """The three terms of ΔW_UE apart, all dense (V, V) or all at k pairs."""

    embedding: Float[Tensor, "*pairs"]  # W_U ΔW_Eᵀ
    unembedding: Float[Tensor, "*pairs"]  # ΔW_U W_Eᵀ
    cross: Float[Tensor, "*pairs"]  # ΔW_U ΔW_Eᵀ

    def total(self) -> Float[Tensor, "*pairs"]:
        """ΔW_UE, the sum of the three."""
        return self.embedding + self.unembedding + self.cross

    def __repr__(self) -> str:
        norms = ", ".join(f"{name} {torch.linalg.vector_norm(term):.4g}" for name, term in self._asdict().items())
        return f"Terms{list(self.cross.shape)}(norms: {norms})"


def decoder(W_U: Matrix, W_E: Matrix) -> Float[Tensor, "V V"]:
    """W_UE = W_U W_Eᵀ: the direct path's logit of each output token (row) after each input token (column).

    Raises:
        ValueError: the shapes or dtypes differ.

    >>> decoder(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [4.0]]))
    tensor([[3., 4.],
            [6., 8.]])
    """
    check_matrices(W_U=W_U, W_E=W_E)
    return W_U @ W_E.T


def terms(W_U: Matrix, W_E: Matrix, dW_U: Matrix, dW_E: Matrix) -> Terms:
    """The three terms of ΔW_UE apart, dense; arguments and errors as for ``shift``."""
    check_matrices(W_U=W_U, W_E=W_E, dW_U=dW_U, dW_E=dW_E)
    return Terms(W_U @ dW_E.T, dW_U @ W_E.T, dW_U @ dW_E.T)


def shift(W_U: Matrix, W_E: Matrix, dW_U: Matrix, dW_E: Matrix) -> Float[Tensor, "V V"]:
    """ΔW_UE = decoder(W_U + dW_U, W_E + dW_E) - decoder(W_U, W_E): the definition, dense, for small vocabularies.

    Args:
        W_U, W_E: unembedding and embedding before the step, (V, d).
        dW_U, dW_E: the step's updates of them, (V, d).

    Raises:
        ValueError: the shapes or dtypes differ.
    """
    return terms(W_U, W_E, dW_U, dW_E).total()


@torch.no_grad()
def entries(output: Int[Tensor, "p"], input: Int[Tensor, "p"], W_U: Matrix, W_E: Matrix) -> Float[Tensor, "p"]:
    """W_UE at chosen pairs, in float64; a pair's entry has the same bits whatever other pairs are chosen.

    Raises:
        ValueError: shapes or dtypes differ, or a token is not in the vocabulary.

    >>> entries(torch.tensor([1, 0]), torch.tensor([0, 0]), torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [4.0]]))
    tensor([6., 3.], dtype=torch.float64)
    """
    check_matrices(W_U=W_U, W_E=W_E)
    check_pairs(output, input, len(W_U))
    chunks = zip(output.split(CHUNK), input.split(CHUNK), strict=True)
    return torch.cat([_dot(W_U[o].double(), W_E[i].double()) for o, i in chunks])


def check_pairs(output: Int[Tensor, "p"], input: Int[Tensor, "p"], V: int) -> None:
    """Raises a ValueError that names the fault if these are not pairs of tokens 0 to V - 1."""
    for name, token in dict(output=output, input=input).items():
        check_is(name, "shape", tuple(token.shape), (output.numel(),))
        if ((token < 0) | (token >= V)).any():
            raise ValueError(f"{name} has tokens from {token.min()} to {token.max()}; they must be in 0..{V - 1}")


def check_matrices(**matrices: Tensor) -> None:
    (like, W), *others = matrices.items()
    if W.ndim != 2 or 0 in W.shape:
        raise ValueError(f"{like} has shape {tuple(W.shape)}; it must be (V, d) with V and d at least 1")
    if W.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{like} is {W.dtype}; it must be torch.float32 or torch.float64")
    for name, x in others:
        check_is(name, "shape", tuple(x.shape), tuple(W.shape), f" as {like} has")
        check_is(name, "dtype", x.dtype, W.dtype, f" as {like} has")


def row_terms(w: PairRows, e: PairRows, dw: PairRows, de: PairRows) -> Terms:
    """The three terms at p pairs from their rows of W_U, W_E, ΔW_U and ΔW_E."""
    return Terms(_dot(w, de), _dot(dw, e), _dot(dw, de))


def check_is(name: str, what: str, got: object, right: object, why: str = "") -> None:
    if got != right:
        raise ValueError(f"{name} has {what} {got}; it must be {right}{why}")


def _dot(x: Float[Tensor, "m d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "m"]:
    """⟨x, y⟩ row by row, by halving, so that a row's result has the same bits whatever rows stand beside it."""
    product = x * y
    while (d := product.shape[1]) > 1:
        product[:, : d // 2] += product[:, d - d // 2 :]
        product = product[:, : d - d // 2]
    return product[:, 0].clone()  # a copy, so as not to hold on to the products
