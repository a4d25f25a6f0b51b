"""One datum's part of what was found for all data of some steps."""

from jaxtyping import Float, Int, Int64
from torch import Tensor


def of_datum(
    amounts: Float[Tensor, "S n *C"], datum: Int[Tensor, "S n"], id: int
) -> tuple[Int64[Tensor, "v"], Float[Tensor, "v *C"]]:
    """At which of S steps a datum was seen, and its amounts there, such as ``Entries.credit[:, probe]`` has them.

    Args:
        amounts: of the steps' data.
        datum: ids of the steps' data.
        id: which datum.

    >>> import torch
    >>> of_datum(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[7, 5], [9, 7]]), 7)
    (tensor([0, 1]), tensor([1., 4.]))
    """
    step, row = (datum == id).nonzero(as_tuple=True)
    return step, amounts[step, row]
