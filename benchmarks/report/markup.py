"""Elements of HTML and of SVG inside it. What is text stays text: everything is escaped where it is written."""

from xml.etree import ElementTree

Element = ElementTree.Element
Child = Element | str | None

# A line each, so that two reports can be compared line by line.
_LINES = frozenset(("head", "meta", "style", "body", "header", "main", "section", "nav", "h1", "h2", "h3", "p"))
_LINES |= frozenset(("ul", "li", "dl", "div", "figure", "figcaption", "details", "table", "thead", "tbody", "tr", "g"))


def element(tag: str, *children: Child, **attributes: str | float | None) -> Element:
    """Return an element.

    Args:
        tag: its name.
        children: elements and text, in their order; None is left out.
        attributes: by their names, with ``_`` for ``-`` and ``class_`` for ``class``; None is left out.
    """
    made = Element(tag, {_name(name): _value(value) for name, value in attributes.items() if value is not None})
    for child in children:
        if isinstance(child, str):
            _append_text(made, child)
        elif child is not None:
            made.append(child)
    return made


def html(root: Element) -> str:
    """Return the document."""
    for made in root.iter():
        if made.tag in _LINES:
            made.tail = (made.tail or "") + "\n"
    return "<!DOCTYPE html>\n" + ElementTree.tostring(root, encoding="unicode", method="html")


def _name(name: str) -> str:
    return name.rstrip("_").replace("_", "-")


def _value(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")


def _append_text(parent: Element, text: str) -> None:
    # Neither HTML nor XML can hold control characters, and messages of compilers are coloured with them.
    text = "".join(character if character.isprintable() or character == "\n" else " " for character in text)
    if len(parent):
        parent[-1].tail = (parent[-1].tail or "") + text
    else:
        parent.text = (parent.text or "") + text
