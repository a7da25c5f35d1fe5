"""HTML and SVG as elements of the standard library's tree, so that no text is ever taken for markup."""

from collections.abc import Iterable, Sequence
from typing import TypeAlias
from xml.etree.ElementTree import Element, tostring

Child: TypeAlias = Element | str


def node(tag: str, /, *children: Child, **attributes: str | float) -> Element:
    """An element with its children in order.

    Attributes are spelled as Python can: ``class_``, ``text_anchor``; numbers are rounded to hundredths.

    Example:
        >>> markup(node("p", "1 < 2", node("b", "!"), class_="x"))
        '<p class="x">1 &lt; 2<b>!</b></p>'
    """
    made = Element(tag, {name.rstrip("_").replace("_", "-"): _value(value) for name, value in attributes.items()})
    for child in children:
        if isinstance(child, Element):
            made.append(child)
        elif len(made):
            made[-1].tail = (made[-1].tail or "") + child
        else:
            made.text = (made.text or "") + child
    return made


def markup(root: Element) -> str:
    """The text of an element, everything in it escaped."""
    return tostring(root, encoding="unicode", method="html")


def number(exact: float, shown: str) -> Element:
    """A number as it is read, and exactly for a machine."""
    return node("data", shown, value=repr(exact))


def table(name: str, caption: str, columns: Sequence[str], rows: Iterable[Sequence[Child]]) -> Element:
    """A table; a column whose cells hold numbers stands to the right.

    Args:
        name: Its id.
        caption: What it shows.
        columns: Their headings.
        rows: As many cells each as there are columns; the first heads its row.
    """
    cells = [[node("th", row[0], scope="row"), *map(_cell, row[1:])] for row in rows]
    numeric = {index for row in cells for index, cell in enumerate(row) if cell.get("class") == "number"}
    heads = [
        node("th", column, scope="col", **({"class_": "number"} if index in numeric else {}))
        for index, column in enumerate(columns)
    ]
    body = [node("tr", *row) for row in cells]
    whole = node("table", node("caption", caption), node("thead", node("tr", *heads)), node("tbody", *body), id=name)
    return node("div", whole, class_="wide")


def bar(share: float, kind: str = "time") -> Element:
    """A bar as long as a share of its cell."""
    return node("span", class_=f"bar fill-{kind}", style=f"width:{100 * share:.2f}%")


def legend(entries: Iterable[tuple[str, str]]) -> Element:
    """What colours stand for, ``(kind, words)``."""
    return node(
        "ul",
        *(node("li", node("span", class_=f"swatch fill-{kind}"), words) for kind, words in entries),
        class_="legend",
    )


def picture(title: str, *children: Element, width: float, height: float) -> Element:
    """A drawing with a title for those who cannot see it, as wide as the page."""
    drawn = node(
        "svg", node("title", title), *children, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=title
    )
    return node("div", drawn, class_="picture")


def label(text: str, x: float, y: float, *, anchor: str = "start", kind: str = "") -> Element:
    """A text in a drawing."""
    return node("text", text, x=x, y=y, text_anchor=anchor, **({"class_": kind} if kind else {}))


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Element:
    """A straight line in a drawing."""
    return node("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=kind)


def _cell(child: Child) -> Element:
    exact = isinstance(child, Element) and child.tag == "data"
    return node("td", child, **({"class_": "number"} if exact else {}))


def _value(value: str | float) -> str:
    return value if isinstance(value, str) else f"{round(value, 2):g}" if abs(value) < 1e5 else str(round(value, 2))
