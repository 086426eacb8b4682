"""A page in sections - words, tables, pictures, trees, commands: as HTML that needs no other file, and as Markdown.

The HTML has no script and no address of anything outside it; its pictures are inline SVG, which follow a dark screen.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from rich.tree import Tree

from hf_wsd.command import BLANK, SECRET_VALUE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATES = Path(__file__).parent / "templates"
_CODE = re.compile(r"(`[^`]*`)")
_SVG_HEAD = re.compile(r"<\?xml.*?<svg ([^>]*)>", re.DOTALL)
_SVG_SURPLUS = re.compile(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table; each row begins with its head.

    Args:
        heads: of the columns.
        rows: cells below them, as many as there are heads.
        words: the heads whose cells are words; the others are numbers, which stand at the right.
        caption: what the numbers are, with their units.

    >>> print(Grid(heads=("model", "loss"), rows=(("a|b", "3.500"),), words=("model",)).markdown())
    | model | loss |
    | --- | ---: |
    | a\\|b | 3.500 |
    """

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: tuple[str, ...] = ()
    caption: str = ""

    def filled(self) -> Grid:
        """The same without the columns in which no row has more than "-"."""
        kept = [at for at in range(len(self.heads)) if any(row[at] != "-" for row in self.rows)]
        heads, *rows = (tuple(cells[at] for at in kept) for cells in (self.heads, *self.rows))
        return replace(self, heads=heads, rows=tuple(rows))

    def markdown(self) -> str:
        """The table, without its caption."""
        rule = ["---" if head in self.words else "---:" for head in self.heads]
        lines = (map(plain_markdown, self.heads), rule, *(map(plain_markdown, row) for row in self.rows))
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure for the page.

    Args:
        figure: drawn by matplotlib.
        name: of its file, without suffix; no two of a page have the same.
        alt: what it shows, for those who cannot see it.
        caption: how to read it.
    """

    figure: Figure
    name: str
    alt: str
    caption: str = ""

    @cached_property
    def inline(self) -> Markup:
        """The figure as a part of an HTML page; the ids in it are those of no other picture."""
        svg = _SVG_SURPLUS.sub("", svg_text(self.figure, salt=self.name))
        box = re.search(r'viewBox="[^"]*"', svg)
        opening = f'<svg {box[0] if box else ""} role="img" aria-label="{escape(self.alt)}">'
        return Markup(re.sub(r'<g id="[^"]*">', "<g>", _SVG_HEAD.sub(lambda _: opening, svg)))


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page under a heading of its own: what is given of it, in this order.

    Args:
        title: its heading.
        texts: paragraphs; `words between such marks` are code.
        picture: a figure.
        table: a table.
        notes: a list below them.
        files: that lie beside the page and have more.
        tree: a tree with texts.
        commands: lines of a shell, each with what it starts.
        folded: whether the reader has to open it.
    """

    title: str
    texts: tuple[str, ...] = ()
    picture: Picture | None = None
    table: Grid | None = None
    notes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    tree: Tree | None = None
    commands: tuple[tuple[str, str], ...] = ()
    folded: bool = False

    @property
    def anchor(self) -> str:
        """Its title as the id of an element."""
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")

    def markdown(self) -> Iterator[str]:
        """Its blocks, between which there are empty lines."""
        yield f"## {plain_markdown(self.title)}"
        yield from map(plain_markdown, self.texts)
        if self.picture:
            yield f"![{plain_markdown(self.picture.alt)}]({self.picture.name}.png)"
        if self.table:
            yield self.table.markdown()
            yield from filter(None, [plain_markdown(self.table.caption)])
        yield from filter(None, ["\n".join(f"- {plain_markdown(note)}" for note in self.notes)])
        if self.files:
            yield f"More in the folder of the run: {', '.join(f'[{name}]({name})' for name in self.files)}"
        if self.tree:
            yield "\n".join(f"{'  ' * depth}- {plain_markdown(text)}" for depth, text in _flat(self.tree))
        for what, line in self.commands:
            yield f"{plain_markdown(what)}:"
            yield f"````\n{line}\n````"


@dataclass(frozen=True, kw_only=True)
class Page:
    """What a reader sees first, then the sections.

    Args:
        title: name of the family or of the ladder.
        kind: what it is, in a few words, above the title.
        claim: what was found, in one sentence.
        facts: the numbers that matter most, each with what it is.
        sections: in the order of reading.
        made_by: the command that made the page.

    >>> section = Section(title="Cost", texts=("`<b>` is *no* markup",))
    >>> page = Page(title="<demo>", kind="family", claim="Decays help", facts=(("37 %", "saved"),), sections=(section,))
    >>> "<h1>&lt;demo&gt;</h1>" in page.html(), "<code>&lt;b&gt;</code> is *no* markup" in page.html()
    (True, True)
    >>> print(page.markdown().splitlines()[-1])
    `<b>` is \\*no\\* markup
    """

    title: str
    kind: str
    claim: str
    facts: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]
    made_by: str = ""

    @property
    def pictures(self) -> list[Picture]:
        """Those of its sections."""
        return [section.picture for section in self.sections if section.picture]

    def html(self) -> str:
        """The whole page, in one file."""
        rooms = Environment(
            loader=FileSystemLoader(TEMPLATES),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        rooms.filters["prose"] = _prose
        return SECRET_VALUE.sub(BLANK, rooms.get_template("report.html").render(page=self)) + "\n"

    def markdown(self) -> str:
        """The same in Markdown, with its pictures in files beside it."""
        facts = "\n".join(f"- {plain_markdown(what)}: {plain_markdown(value)}" for value, what in self.facts)
        blocks = [f"# {plain_markdown(self.title)}", f"{plain_markdown(self.claim)}.", *filter(None, [facts])]
        blocks += [block for section in self.sections for block in section.markdown()]
        return SECRET_VALUE.sub(BLANK, "\n\n".join(blocks)) + "\n"


def plain_markdown(text: str) -> str:
    """A text that means nothing but itself in Markdown, on one line; what stands between backticks stays code.

    >>> print(plain_markdown("<script> a|b `--eval_strategy` [x]"))
    \\<script\\> a\\|b `--eval_strategy` \\[x\\]
    """
    parts = _CODE.split(" ".join(text.split()))
    return "".join(
        part.replace("|", "\\|") if at % 2 else re.sub(r"([\\*\[\]<>|&~])", r"\\\1", part)
        for at, part in enumerate(parts)
    )


def svg_text(figure: Figure, *, salt: str) -> str:
    """A figure as SVG whose text is text; the same figure gives the same bytes.

    Args:
        figure: drawn by matplotlib.
        salt: makes the ids of its elements differ from those of other pictures.
    """
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt, "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def _prose(text: str) -> Markup:
    parts = _CODE.split(text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part[1:-1]) if at % 2 else part for at, part in enumerate(parts)
    )


def _flat(tree: Tree, depth: int = 0) -> Iterator[tuple[int, str]]:
    """The texts of a tree in the order of reading, with how deep they stand."""
    yield depth, str(tree.label).replace("\n", "; ")
    for child in tree.children:
        yield from _flat(child, depth + 1)
