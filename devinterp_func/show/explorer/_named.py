"""Where the names in a page's tables lead, and tokens as words that are links."""

from collections.abc import Sequence

from devinterp_func.show import page, results
from devinterp_func.show.explorer._site import Site
from devinterp_func.show.explorer._types import Links
from devinterp_func.show.page import Word


def named(links: Links) -> page.Links:
    """Addresses for ``page.table``: a probe's page is called by its name as part of a file name."""
    return lambda kind, value: links(kind, results.slug(str(value)) if kind == "probe" else value)


def coloured(site: Site, tokens: Sequence[int], amounts: Sequence[float], links: Links) -> list[Word]:
    """Tokens that lead to their pages, the deepest colour the largest amount of either sign.

    Args:
        site: with a vocabulary.
        tokens: ids.
        amounts: of each.
        links: of the page.
    """
    assert site.vocab is not None
    largest = max(map(abs, amounts), default=0.0) or 1.0
    words = site.vocab.decode(list(tokens))
    return [
        Word(links.a(word, "token", int(token)), amount / largest)
        for word, token, amount in zip(words, tokens, amounts, strict=True)
    ]
