"""One optimizer step, and the law that splits it over the data."""

from devinterp_func.optim._law import delta_factors, deltas, missed, share
from devinterp_func.optim._sgd import StepInfo, learning_rate, update

__all__ = ["StepInfo", "delta_factors", "deltas", "learning_rate", "missed", "share", "update"]
