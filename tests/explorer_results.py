"""The small site of tests with results of the scripts that its pages read: heads, a ledger, phases."""

import sys
from pathlib import Path

import explorer_sites

from devinterp_func.show import explorer

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))  # where the scripts find each other

import heads  # noqa: E402
import ledger  # noqa: E402
import phases  # noqa: E402

PROBE = "head:1.1 bracket"
_made: dict[Path, explorer.Site] = {}


def site(folder: Path) -> explorer.Site:
    """The site with results, made once for a process of tests.

    Args:
        folder: of the whole session.
    """
    if folder not in _made:
        run, out = explorer_sites.site(folder).run.path, folder / "explorer-results"
        heads.main(heads.Settings(run, out=out, texts=20))
        ledger.main(ledger.Settings(run, out=out, probe=("loss", PROBE), start=10, stop=30, nodes=1, texts=3))
        phases.main(phases.Settings((run,), out=out, window=4, every=2, texts=10, common=10))
        _made[folder] = explorer.open(run, out)
    return _made[folder]
