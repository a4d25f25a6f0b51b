"""Which page is made by what, and a page as HTML."""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any
from urllib.parse import unquote

from markupsafe import Markup

from devinterp_func import neurons
from devinterp_func.show import drawing, page, results
from devinterp_func.show._written import literal
from devinterp_func.show.explorer._site import Site
from devinterp_func.show.explorer._types import FOLDERS, SINGLE, Links, NotThere, Panel, Query, View
from devinterp_func.show.page._templates import templates

Make = Callable[[Site, str, Query, Links], View]
"""A page: of the site, its id (empty where its kind has none), what else the address asks for, links from there."""


def make(site: Site, address: str, query: Query | None = None) -> View:
    """A page by its address.

    Args:
        site: what it is about.
        address: relative to the front page, such as ``"step/12.html"``.
        query: what the address asks for besides.

    Raises:
        NotThere: there is no such page; near ones are named.
    """
    kind, id = split(address)
    return maker(kind)(site, id, query or {}, links_of(address))


def split(address: str) -> tuple[str, str]:
    """Kind and id of a page, by its address.

    Raises:
        NotThere: it is no page's.

    >>> split("neuron/layers.2.linear2.weight:96.html"), split("run.html")
    (('neuron', 'layers.2.linear2.weight:96'), ('run', ''))
    """
    name = address.removesuffix(".html")
    kind, slash, id = name.partition("/")
    known = FOLDERS if slash else SINGLE
    if name == address or kind not in known or bool(slash) != bool(id):
        raise NotThere(f"there is no page {unquote(address)!r}", [("the run", "run", None)])
    return kind, unquote(id)


def links_of(address: str) -> Links:
    """Links from a page to all others."""
    return Links("../" * address.count("/"))


@cache
def maker(kind: str) -> Make:
    """What makes the pages of a kind."""
    made: Make = import_module(f"devinterp_func.show.explorer._{kind}_view").view
    return made


def html(site: Site, view: View, address: str, live: bool = True) -> str:
    """A page as HTML.

    Args:
        site: what it is about.
        view: the page.
        address: its own.
        live: whether a server answers; else it is a file, from which nothing can be asked.
    """
    links = links_of(address)
    menu = [(name, links(kind), kind == address.removesuffix(".html")) for kind, name in SINGLE.items()]
    menu = [entry for entry, kind in zip(menu, SINGLE, strict=True) if live or kind not in ("jobs", "search")]
    template = templates().get_template("explorer.html.jinja")
    written = template.render(view=view, menu=menu, links=links, live=live, run=site.run.path.name, here=address)
    return literal(page.resolve(Markup(written), addresses(site, links)))


def addresses(site: Site, links: Links) -> page.Links:
    """Where the names on a page lead: to the pages that there are."""

    def address(kind: str, value: Any) -> str | None:
        return links(kind, results.slug(value) if kind == "probe" else value) if _is_there(site, kind, value) else None

    return address


def _is_there(site: Site, kind: str, value: Any) -> bool:
    if kind == "neuron":
        return any(value == str(parsed) and parsed in site.numbers[parsed.axis] for parsed in _parsed(value))
    n_tokens = len(site.vocab) if site.vocab is not None else 0
    stops = {"datum": site.run.n_data, "step": site.n_steps, "token": n_tokens}
    return 0 <= value < stops[kind] if kind in stops else kind in ("head", "probe")


def _parsed(value: str) -> list[neurons.Neuron]:
    try:
        return [neurons.parse(value)]
    except ValueError:
        return []


def style() -> str:
    """The pages' style sheet."""
    template = templates().get_template("explorer.css.jinja")
    return template.render(light=drawing.LIGHT, dark=drawing.DARK, depth=drawing.DEPTH)


def script() -> str:
    """The pages' script: hover, brushing, search, the slider; every page works without it."""
    loader = templates().loader
    assert loader is not None
    return loader.get_source(templates(), "explorer.js")[0]


def missing(site: Site, error: NotThere, address: str, live: bool = True) -> str:
    """What stands where a page is asked for that there is not."""
    links = links_of(address)
    near = [links.a(text, kind, id) for text, kind, id in error.near]
    return html(site, View("Not here", [Panel("Nearest", items=[page.links(near)])], str(error)), address, live)
