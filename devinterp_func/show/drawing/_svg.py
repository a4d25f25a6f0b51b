"""Figures as SVG elements that stand in a page, in the page's colours."""

import hashlib
import io
import re
from xml.etree import ElementTree

from markupsafe import Markup
from matplotlib.figure import Figure

from devinterp_func.show.drawing._style import LIGHT, house_style


def svg(drawing: Figure, alt: str) -> Markup:
    """A figure as an SVG element to stand in a page.

    Text stays text, house colours become CSS variables (--blue; for text --blue-text), ids are the figure's own, and
    coordinates have no more digits than can be seen.

    Args:
        drawing: of ``plots`` or any other.
        alt: what it shows, for those who cannot see it.
    """
    buffer, nothing = io.BytesIO(), dict.fromkeys(["Date", "Creator", "Format", "Type"])
    with house_style():
        drawing.savefig(buffer, format="svg", metadata=nothing, transparent=True)
    text = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]", "\N{REPLACEMENT CHARACTER}", buffer.getvalue().decode())
    prefix = f"f{hashlib.sha256(f'{alt}{text}'.encode()).hexdigest()[:8]}-"
    used = set(re.findall(r'(?:href="|url\()#([\w.-]+)', text))
    root = _without(ElementTree.fromstring(text), "style", "metadata")
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        named = ((name.rpartition("}")[2], value) for name, value in element.items())
        attributes = {name: value for name, value in named if name != "id" or value in used}
        element.attrib = {name: _attribute(element.tag, name, v, prefix) for name, v in attributes.items()}
        element.text, element.tail = element.text if element.tag in ("text", "tspan") else None, None
    width = float(root.attrib.pop("width").removesuffix("pt")) / 72
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": alt}
    root.attrib["style"] = f"--width:{width:.3g}in"
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _attribute(tag: str, name: str, value: str, prefix: str) -> str:
    """An attribute with fewer digits, the page's colours and prefixed ids."""
    if name == "id":
        return prefix + value
    if name == "href":
        return re.sub(r"^#", f"#{prefix}", re.sub(r"\s+", "", value))
    if name == "style":
        value = re.sub(r"font-family:[^;]*(?:; *|$)", "", value)
        for colour, code in LIGHT.items():
            value = value.replace(code, f"var(--{colour}{'-text' if tag == 'text' else ''})")
        value = re.sub("#000000", "var(--ink)", value)
        return re.sub(r"([:;]) ", r"\1", value)
    if name in ("d", "x", "y", "width", "height", "transform"):
        value = re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), value)
        return " ".join(value.split())
    return value.replace("url(#", f"url(#{prefix}")


def _without(root: ElementTree.Element, *tags: str) -> ElementTree.Element:
    """The tree less elements of these tags; a style in it would be the whole page's."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in tags:
                parent.remove(child)
    return root
