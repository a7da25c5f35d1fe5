"""Reads a page as a browser would, with the standard library's parser: elements, their text, their numbers."""

from html.parser import HTMLParser

VOID = {"meta", "br"}


class Page(HTMLParser):
    """Elements in order, each ``[tag, attributes, text, path]``; tags that do not match are a fault."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.open = [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "text": "", "path": [one["attrs"].get("id") for one in self.open], "attrs": dict(attrs)}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag, **attrs):
        attrs = {name.rstrip("_"): value for name, value in attrs.items()}
        return [one for one in self.elements if one["tag"] == tag and attrs.items() <= one["attrs"].items()]

    def numbers(self, table):
        """The exact numbers in a table of this id, in order."""
        return [float(one["attrs"]["value"]) for one in self.all("data") if table in one["path"]]
