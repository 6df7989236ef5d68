"""HTML as a tree, for tests of pages."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

from benchmarks.report.page import page

VOID = {"br", "meta"}  # elements of HTML that have no end


class Tree(HTMLParser):
    """Builds a tree, and insists that every element is closed where it should be."""

    def __init__(self, text):
        super().__init__()
        self.builder = ElementTree.TreeBuilder()
        self.open = []
        self.feed(text)
        self.close()
        assert not self.open
        self.root = self.builder.close()

    def handle_starttag(self, tag, attributes):
        self.builder.start(tag, {name: value or "" for name, value in attributes})
        if tag in VOID:
            self.builder.end(tag)
        else:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.builder.end(tag)

    def handle_data(self, data):
        if self.open:
            self.builder.data(data)


def parsed(rows):
    return Tree(page(rows)).root


def text_of(element):
    return " ".join("".join(element.itertext()).split())


def with_class(root, name, tag="*"):
    return [e for e in root.iter(None if tag == "*" else tag) if name in e.get("class", "").split()]


def svgs(html):
    """The texts of all pictures that are not in another one."""
    depth, begin, found = 0, 0, []
    for match in re.finditer(r"<svg|</svg>", html):
        if match[0] == "<svg":
            begin = begin if depth else match.start()
        depth += 1 if match[0] == "<svg" else -1
        if depth == 0:
            found.append(html[begin : match.end()])
    return found


def chart(root, title):
    """The plot with this title."""
    (found,) = [plot for plot in with_class(root, "plot", "svg") if plot.find("title").text == title]
    return found


def at(element, name):
    """An attribute in percent or in pixels."""
    return float(element.get(name).rstrip("%"))
