"""Which data influenced a probe most, visit by visit, beside what the same visits are credited with.

Two questions. A credit: how much of what a step did to the probe was this datum's? An influence: what would the probe
be, after all steps, without the datum? Both are sums over a datum's visits, and have the sign of the probe's change.
"""

from typing import Literal, NamedTuple, get_args

from jaxtyping import Float, Int
from torch import Tensor

from devinterp_func import checks, keys, stats
from devinterp_func.credit._influence import Influences
from devinterp_func.credit._places import places
from devinterp_func.credit._removals import datum_totals

Effect = Literal["helped", "harmed"]
EFFECTS: tuple[Effect, ...] = get_args(Effect)


class InfluencedText(NamedTuple):
    """A datum and its k visits in a span, what they did to a probe by either amount, and its places among all data.

    Places count from 1, the datum that helped most, to the number of data, the one that harmed most.
    """

    effect: Effect
    rank: int  # among the data of this effect, from 1
    datum: int
    step: Int[Tensor, "k"]  # of each visit
    influence: Float[Tensor, "k C"]  # of each visit, by position: by the weight of that prediction's loss
    credit: Float[Tensor, "k"]  # of each visit: present, in its own step
    influence_place: int
    credit_place: int

    @property
    def position(self) -> int:
        """Where most of its influence is."""
        each = self.influence.sum(0)
        return int((each * each.sum().sign()).argmax())

    def __repr__(self) -> str:
        return f"InfluencedText({self.effect}, datum {self.datum}: {float(self.influence.sum()):.4g})"


def most_influential(
    found: Influences, credit: Float[Tensor, "S n"], probe: int, sign: Literal[1, -1], most: int = 10
) -> list[InfluencedText]:
    """The data that helped a probe most by their influence over all visits, then those that harmed it most.

    Args:
        found: of ``influence`` or ``window_influences``.
        credit: of the same visits, to the same probe.
        probe: its number among those of ``found``.
        sign: of ``helping_sign``.
        most: data of each effect, at most.

    Raises:
        ValueError: the credits are not of the same visits.
    """
    _require_same(found, credit)
    checks.integer("most", most)
    (ids, influences), credits = datum_totals(found.scores()[probe], found.datum), datum_totals(credit, found.datum)[1]
    helps = influences * sign
    place, credit_place, texts = places(helps), places(credits * sign), list[InfluencedText]()
    order = helps.argsort(descending=True, stable=True)
    ends = (order[helps[order] > 0], order.flip(0)[helps[order.flip(0)] < 0])
    for effect, chosen in zip(EFFECTS, ends, strict=True):
        for rank, i in enumerate(chosen[:most].tolist(), start=1):
            at, row = (found.datum == ids[i]).nonzero(as_tuple=True)
            amounts = found.step[at], found.influence[at, probe, row], credit[at, row]
            texts.append(InfluencedText(effect, rank, int(ids[i]), *amounts, int(place[i]), int(credit_place[i])))
    return texts


def influence_and_credit(
    found: Influences, credit: Float[Tensor, "S n"], probe: int, *, key: keys.Key | int, resamples: int = 2000
) -> stats.Estimate:
    """Spearman's correlation of a probe's influences and credits over the data, and its bootstrap interval over them.

    Args:
        found, credit, probe: of ``most_influential``.
        key: of the bootstrap.
        resamples: of it.

    Raises:
        ValueError: the credits are not of the same visits.
    """
    _require_same(found, credit)
    influences, credits = (datum_totals(x, found.datum)[1] for x in (found.scores()[probe], credit))
    return stats.bootstrap(stats.rank_correlations, influences, credits, key=key, resamples=resamples)


def _require_same(found: Influences, credit: Tensor) -> None:
    if credit.shape != found.datum.shape:
        raise ValueError(f"the credits are {tuple(credit.shape)}; of the visits of {found} {tuple(found.datum.shape)}")
