"""The two texts of a sample: what the teacher reads of a slate and one of its items.

A template names the fields to render. It can name only what the shop knew before it ranked: no label, position, score,
propensity, id or time. So the teacher sees nothing that came later, and nothing that tells where an item was shown.
"""

from __future__ import annotations

import string
from typing import Annotated, Literal, NamedTuple

import msgspec

from heft.models.records import Item, Slate, Value

SEPARATOR = "|"


class TemplateError(ValueError):
    """A template that names what the teacher may not see, or that is not a template."""


class Pair(NamedTuple):
    """The two texts of a sample: that of the query, and that of the item."""

    query: str
    item: str


class TeacherConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The teacher: a text model fine-tuned on the shop's own log."""

    template: str = "{query} | {item.text}"
    """What it reads: {query}, {surface}, {context.NAME}, {item.text} and {item.NAME}, a feature of the item, as in
    "{query} | {item.text} | brand {item.brand} | {context.device}". Whatever makes more texts of one query or item has
    fewer scores on time. A part between bars whose fields are all missing is left out. Parts that name the item are
    its text, the others the text of the query. It is what `heft teacher finetune` trains with; a teacher reads what
    it was trained with."""
    model: str = ""
    """Folder of the teacher that gives reference scores. Empty, and no ``url`` either: none, every sample counts once.
    A worker notices when the folder holds a new version."""
    url: str = ""
    """Where `heft teacher serve` answers (``http://HOST:PORT``), to be asked instead of scoring in the worker."""
    token: str = ""
    """What `heft teacher serve` asks of workers, and a worker sends to ``url``; keep it in ``HEFT_TEACHER__TOKEN``.
    Empty: none."""
    score_delay_ms: Annotated[int, msgspec.Meta(ge=0)] = 2_000
    """A score is on time when it was known so long before its slate was shown: what it takes to reach the rankers. Of a
    teacher that reads texts apart: when both texts had been read so long before; of a static one, which rankers run
    themselves: when it had come so long before."""
    backends: Literal["exact", "any"] = "exact"
    """Which backends may compute the model: the exact ones, or any, with int8 and bfloat16 among them. Each is timed on
    this machine at start, and the fastest is taken. A static teacher has one backend only."""
    device: str = "auto"
    """Where the model runs: ``cpu``, ``cuda``, or ``auto``, which is a GPU if there is one."""
    batch: Annotated[int, msgspec.Meta(ge=1)] = 64
    """Pairs that are scored together at most: some tenths of a second of a CPU; 512 suit a GPU."""
    linger_ms: Annotated[int, msgspec.Meta(ge=0)] = 20
    """How long a batch that is not full waits for more pairs."""
    timeout_ms: Annotated[int, msgspec.Meta(ge=1)] = 5_000
    """How long ``url`` may take for a batch before it is asked again."""
    queue: Annotated[int, msgspec.Meta(ge=1)] = 20_000
    """Pairs that wait for a score at most; beyond it those that the fewest slates wait for go without."""
    cache: Annotated[int, msgspec.Meta(ge=1)] = 200_000
    """Scores that are remembered, by text and version; and as many texts, of a teacher that reads them apart."""

    def __post_init__(self) -> None:
        Template(self.template)


class _Part(NamedTuple):
    pieces: tuple[tuple[str, str], ...]  # a literal text, and the field after it ("" for none)
    of_item: bool


class Template:
    """A compiled template.

    Parameters
    ----------
    text
        Parts between bars, each with text and fields in braces; see `TeacherConfig.template`.

    Raises
    ------
    TemplateError
        If it names a field that the teacher may not see; the message names the field and those allowed.

    Examples
    --------
    >>> template = Template("{query} | {item.text} | brand {item.brand} | {context.device}")
    >>> item = Item(item_id="i", text="Red shoe", features={"brand": None})
    >>> slate = Slate(request_id="r", user_id="u", at_ms=10**12, items=[item], query="shoes")
    >>> template.render(slate, item)
    Pair(query='shoes', item='Red shoe')
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._parts = tuple(_parse(part) for part in text.split(SEPARATOR))
        if not any(field for part in self._parts for _, field in part.pieces):
            msg = f"the template {text!r} names no field; begin with {{query}} | {{item.text}}"
            raise TemplateError(msg)

    def query(self, slate: Slate) -> str:
        """Return the text that all items of a slate share."""
        return self._render(False, slate, None)

    def item(self, slate: Slate, item: Item) -> str:
        """Return the text of one item of a slate."""
        return self._render(True, slate, item)

    def render(self, slate: Slate, item: Item) -> Pair:
        """Return both texts of a sample."""
        return Pair(self.query(slate), self.item(slate, item))

    def _render(self, of_item: bool, slate: Slate, item: Item | None) -> str:
        rendered = (_render(part, slate, item) for part in self._parts if part.of_item == of_item)
        return f" {SEPARATOR} ".join(part for part in rendered if part)


def _parse(part: str) -> _Part:
    try:
        pieces = [(literal, field) for literal, field, _, _ in string.Formatter().parse(part)]
    except ValueError as error:
        msg = f"the template part {part.strip()!r} cannot be read: {error}"
        raise TemplateError(msg) from None
    for _, field in pieces:
        if field is not None:
            _require_allowed(field)
    return _Part(
        tuple((literal, field or "") for literal, field in pieces),
        any((field or "").startswith("item.") for _, field in pieces),
    )


def _require_allowed(field: str) -> None:
    head, _, name = field.partition(".")
    if field in ("query", "surface", "item.text") or (head == "context" and name):
        return
    # The wire's other fields of an item, now or later, tell how it was shown; only its features tell what it is.
    if head == "item" and name and name not in Item.__struct_fields__:
        return
    msg = (
        f"the template names {{{field}}}, which the teacher may not see; allowed are {{query}}, {{surface}}, "
        "{context.NAME}, {item.text} and {item.NAME} for a feature of the item"
    )
    raise TemplateError(msg)


def _render(part: _Part, slate: Slate, item: Item | None) -> str:
    out = []
    fields = found = 0
    for literal, field in part.pieces:
        out.append(literal)
        if field:
            fields += 1
            value = _text(_value(field, slate, item))
            found += bool(value)
            out.append(value)
    return " ".join("".join(out).split()) if found or not fields else ""


def _value(field: str, slate: Slate, item: Item | None) -> Value:
    head, _, name = field.partition(".")
    if head == "context":
        return slate.context.get(name)
    if head == "item":
        assert item is not None
        return item.text if name == "text" else item.features.get(name)
    return slate.query if field == "query" else slate.surface


def _text(value: Value) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.10g}"
        case list():
            return " ".join(value)
        case _:
            return str(value)
