"""Arrays as matplotlib figures, in one house style (``drawing``), for ``page`` or for a paper.

Every function draws a new ``Figure`` of a width in inches, ``drawing.NARROW`` for a phone; pyplot and the global
settings are left alone. Long series are drawn as means of bins and dense pictures as pixels, so that a figure takes
kilobytes.

Source of the activation figures: Figures 1-3 of *Training Process Transparency through Gradient Interpretability: Early
Experiments on Toy Language Models* (Krzyzanowski and Hubinger 2023).
"""

from devinterp_func.show.plots._activations import activation_histograms, neighbours
from devinterp_func.show.plots._courses import Series, credit_bands, lines
from devinterp_func.show.plots._forecasts import Forecasts, forecast_panels
from devinterp_func.show.plots._pictures import pictures
from devinterp_func.show.plots._training import concentration, loss_curve, outliers_over_training
from devinterp_func.show.plots._verdicts import KINDS, Kind, flips_scatter, notable_share, skill_bars

__all__ = [
    "Forecasts",
    "KINDS",
    "Kind",
    "Series",
    "activation_histograms",
    "concentration",
    "credit_bands",
    "flips_scatter",
    "forecast_panels",
    "lines",
    "loss_curve",
    "neighbours",
    "notable_share",
    "outliers_over_training",
    "pictures",
    "skill_bars",
]
