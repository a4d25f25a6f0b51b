"""The search page: what a reader's words may mean, each a link."""

from collections.abc import Sequence

from markupsafe import Markup

from devinterp_func.show import page
from devinterp_func.show.explorer._lines import python
from devinterp_func.show.explorer._search import NEAREST, Hit, search
from devinterp_func.show.explorer._site import Site, label
from devinterp_func.show.explorer._types import Links, Panel, Query, View

FORM = Markup(
    '<form class="span" method="get" action="{}"><label>search for <input name="q" value="{}" autocomplete="off" '
    'spellcheck="false"></label> <button>Search</button></form>'
)
EXAMPLES = "A neuron, a token, words of a text, a step, a datum, a head, a probe. For example:"


def view(site: Site, id: str, query: Query, links: Links) -> View:
    """What was asked for may be any of these."""
    asked = query.get("q", "")
    hits = search(site, asked)
    form = Panel("Search", "" if asked.strip() else EXAMPLES, [FORM.format(links("search"), asked)])
    if not asked.strip():
        examples = [links.a(text, "search", q=text) for text in _examples(site)]
        return View("Search", [form._replace(items=[*form.items, page.links(examples)])])
    groups = list(dict.fromkeys(hit.group for hit in hits))
    told = (
        f"{page.counted(len(hits), 'page')} may be meant." if hits and groups != [NEAREST] else "Nothing is called so."
    )
    return View(f"“{asked}”", [form, *(_group(site, asked, group, hits, links) for group in groups)], told)


def _group(site: Site, asked: str, group: str, hits: Sequence[Hit], links: Links) -> Panel:
    own = [hit for hit in hits if hit.group == group]
    found = [Markup('<a href="{}">{}</a>').format(links.root + hit.address, hit.text) for hit in own]
    lines = f"[hit for hit in dif.show.explorer.search(site, {asked!r}) if hit.group == {group!r}]"
    return Panel(group, "", [page.links(found)], python(site, lines), own)


def _examples(site: Site) -> list[str]:
    """Questions that have an answer."""
    members = site.groups["in"].members
    found = [label(member) for member in members[:1] if not isinstance(member, int)]
    if site.vocab is not None:
        tokens = site.run.data.tokens[0]
        found += [site.vocab.tokens[int(tokens[0])], " ".join(site.vocab.decode(tokens[:3]))]
    return [*found, "step 0", "datum 0"]
