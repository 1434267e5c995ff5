"""What every page of the package has to be: whole, self-contained, its pictures readable."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

from PIL import Image


class Elements(HTMLParser):
    """Counts elements and notes what is left open."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}
        self.ids: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag


def check_page(text: str) -> Elements:
    """The elements of a page that needs no network and has nothing left open."""
    elements = Elements(text)
    assert elements.open == []
    assert not re.search(r"(https?:)?//(?!www\.w3\.org)[a-z]", re.sub(r"base64,[A-Za-z0-9+/=]+", "", text))
    assert not {"script", "link", "iframe"} & set(elements.counts)
    assert len(set(elements.ids)) == len(elements.ids)
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(elements.ids)
    for picture in pictures(text):
        picture.load()
    return elements


def pictures(text: str) -> list[Image.Image]:
    """The pictures in a page."""
    found = re.findall(r"base64,([A-Za-z0-9+/=]+)", text)
    return [Image.open(io.BytesIO(base64.b64decode(content))) for content in found]
