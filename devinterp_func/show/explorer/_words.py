"""Words of data for the eye."""

from devinterp_func.show import words
from devinterp_func.show._written import literal
from devinterp_func.show.explorer._site import Site


def said(site: Site, datum: int, most: int = 12) -> str:
    """The beginning of a datum's text; of data that are none, the shapes of its tensors."""
    if site.vocab is None:
        leaves = site.run.data if isinstance(site.run.data, tuple | list) else (site.run.data,)
        return ", ".join(f"{list(leaf[datum].shape)}" for leaf in leaves)
    tokens = site.run.data.tokens[datum]
    return literal(words.words(tokens[:most], site.vocab)) + (" …" if len(tokens) > most else "")
