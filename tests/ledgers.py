"""A ledger of random numbers to test with: no model is needed to sum it up."""

import torch

from devinterp_func.credit import Entries

S, P, N, C, DATA, V = 25, 2, 4, 5, 9, 6  # steps from 5 on, probes, data a step, positions, different data, tokens


def ledger(seed: int = 0) -> Entries:
    """Steps that books miss a little of; past and decay are as large as a credit; data come several times."""
    drawn = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=drawn, dtype=torch.float64)

    credit, marginal, at_start = (normal(S, P, N, C) for _ in range(3))
    past, decay, rest_at_end, rest_at_start = (normal(S, P) for _ in range(4))
    course = torch.cat([normal(1, P), credit.sum((2, 3)) + past + decay + 0.1 * normal(S, P)]).cumsum(0)
    datum = torch.stack([torch.randperm(DATA, generator=drawn)[:N] for _ in range(S)])
    ends = course[:-1], course[1:]
    rest = past, decay, rest_at_end, rest_at_start
    return Entries(torch.arange(5, 5 + S), datum, *ends, credit, marginal, at_start, *rest)
