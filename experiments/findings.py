"""Every claim that the results begin with: its number, its control and the table that both are read from.

    python experiments/findings.py                       # writes the claims into experiments/results/README.md
    python experiments/findings.py --check               # says whether they are as the tables have them

Nothing is typed by hand: a claim whose table changes, changes, and one whose table is missing is an error.
"""

from dataclasses import dataclass
from pathlib import Path

import claims
import stage
import tyro

from devinterp_func.show import results

BEGIN, END = "<!-- {}: written by findings.py -->\n", "<!-- end -->"


@dataclass(frozen=True)
class Settings:
    folder: tyro.conf.Positional[Path] = Path(__file__).parent / "results"
    """Where the committed tables are, and the README.md whose marked parts are written."""
    check: bool = False  # write nothing; end with an error where the text is not what the tables say


def main(settings: Settings) -> Path:
    page = settings.folder / "README.md"
    before = page.read_text()
    after = filled(before, {name: make(settings.folder) for name, make in claims.PARTS.items()})
    if settings.check and after != before:
        raise ValueError(f"{page} does not say what the tables say; run: python experiments/findings.py")
    if not settings.check:
        results.write(page, after.encode())
    stage.say(f"{len(claims.CLAIMS)} claims, as the tables have them, in {page}")
    return page


def filled(page: str, parts: dict[str, str]) -> str:
    """A page with its marked parts written anew.

    Raises:
        ValueError: a part has no mark, or several.
    """
    for name, text in parts.items():
        begin = BEGIN.format(name)
        if page.count(begin) != 1:
            raise ValueError(f"the page has {page.count(begin)} marks {begin.strip()!r}; it must have one")
        head, rest = page.split(begin)
        if END not in rest:
            raise ValueError(f"no {END!r} follows the mark {begin.strip()!r}")
        page = f"{head}{begin}{text}{END}{rest.split(END, 1)[1]}"
    return page


if __name__ == "__main__":
    stage.run(main, Settings, __doc__)
