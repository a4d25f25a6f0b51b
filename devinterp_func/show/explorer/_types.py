"""What the explorer's pages are made of: links, panels, views."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import quote, urlencode

from markupsafe import Markup

FOLDERS = ("neuron", "datum", "step", "token", "probe", "head", "phase", "job")  # kinds of pages that have an id
SINGLE = {  # the other pages, in the order of the menu -> their names there
    "run": "Run",
    "neurons": "Neurons",
    "heads": "Heads",
    "probes": "Probes",
    "phases": "Phases",
    "compare": "Compare",
    "search": "Search",
    "jobs": "Jobs",
}


class NotThere(LookupError):
    """No such page; with what may have been meant."""

    def __init__(self, message: str, near: Sequence[tuple[str, str, object]] = ()):
        super().__init__(message)
        self.near = tuple(near)  # (text, kind, id) of pages that there are


@dataclass(frozen=True)
class Links:
    """Addresses of pages, from a page ``root`` away from the front page: the same on a server and in a folder."""

    root: str = ""

    def __call__(self, kind: str, id: object = None, **query: object) -> str:
        """The address of a page.

        >>> Links("../")("neuron", "layers.2.linear2.weight:96"), Links()("run", start=5)
        ('../neuron/layers.2.linear2.weight:96.html', 'run.html?start=5')
        """
        asked = f"?{urlencode({name: str(value) for name, value in query.items()})}" if query else ""
        return f"{self.root}{path(kind, id)}{asked}"

    def a(self, text: object, kind: str, id: object = None, **query: object) -> Markup:
        """A link."""
        return Markup('<a href="{}">{}</a>').format(self(kind, id, **query), text)


def path(kind: str, id: object = None) -> str:
    """A page's path, which is also its file in an export.

    Raises:
        ValueError: no such kind of page.
    """
    if kind in FOLDERS and id is not None:
        return f"{kind}/{quote(str(id), safe=':.,=-_ ').replace(' ', '%20')}.html"
    if kind in SINGLE and id is None:
        return f"{kind}.html"
    raise ValueError(f"there is no page {kind!r}{'' if id is None else f' {id!r}'}")


class Panel(NamedTuple):
    """A part of a page, and the lines that give what is shown in it."""

    title: str
    lead: str = ""  # see ``page.prose``
    items: Sequence[Markup] = ()
    python: str = ""  # lines for the REPL; the last is an expression
    value: object = None  # what that expression gives, and what the panel is drawn from


class View(NamedTuple):
    """A page."""

    title: str
    panels: Sequence[Panel]
    subtitle: str | Markup = ""  # see ``page.prose``
    before: str | None = None  # address of the page before it, such as the step before
    after: str | None = None
    lively: bool = False  # whether it changes by itself, as a job's page does


Query = Mapping[str, str]
"""What an address asks for besides the page, such as ``{"start": "5"}``."""
