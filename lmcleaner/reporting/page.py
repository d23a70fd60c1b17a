"""A page that is one file: no script, nothing from a network, its style within."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from lmcleaner.reporting.markup import Html, joined, slug, tag

# Should anything slip through the escaping, the browser still loads and runs nothing.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page.

    Attributes:
        title: its heading.
        content: what stands below; a section without any is left out.
    """

    title: str
    content: Sequence[Html]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return not any(self.content)


def make_page(title: str, lead: Sequence[Html], sections: Sequence[Section]) -> str:
    """A page with a table of contents.

    Args:
        title: of the page.
        lead: what stands above all sections.
        sections: in order; empty ones are left out.

    Returns:
        The HTML document.
    """
    shown = [section for section in sections if not section.is_empty]
    links = (tag("li", tag("a", section.title, href=f"#{slug(section.title)}")) for section in shown)
    contents = tag("nav", tag("ul", *links), aria_label="Contents")
    parts = (tag("section", tag("h2", section.title, id=slug(section.title)), *section.content) for section in shown)
    body = tag(
        "body",
        tag("a", "Skip to the content", href="#content", class_="skip"),
        tag("header", tag("h1", title)),
        contents,
        tag("main", *lead, *parts, id="content"),
    )
    return f"<!DOCTYPE html>\n{tag('html', _head(title), body, lang='en')}\n"


def _head(title: str) -> Html:
    style = Html(files("lmcleaner.reporting").joinpath("page.css").read_text(encoding="utf-8"))
    return tag(
        "head",
        Html('<meta charset="utf-8">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html('<meta name="color-scheme" content="light dark">'),
        tag("title", title),
        joined([tag("style", style)]),
    )
