"""The text of a sample: nothing that came later or tells where an item was shown can get into it."""

import pytest

from heft.models.records import Act, Item, Slate
from heft.models.teacher.template import Pair, TeacherConfig, Template, TemplateError
from heft.stream.config.settings import BadValueError, load
from tests.support.builders import T0

SHOP = "{query} | {item.text} | brand {item.brand} | {context.device}"


def slate(item: Item, **more: object) -> Slate:
    return Slate(request_id="r", user_id="u", at_ms=T0, items=[item], **more)  # type: ignore[arg-type]


def render(template: str, item: Item, **more: object) -> Pair:
    return Template(template).render(slate(item, **more), item)


def test_parts_that_name_the_item_are_its_text_and_the_others_the_querys() -> None:
    item = Item("i", text="Red  shoe", features={"brand": "acme"})
    pair = render(SHOP, item, query="red shoes", context={"device": "mobile"})
    assert pair == Pair("red shoes | mobile", "Red shoe | brand acme")


def test_what_is_missing_leaves_neither_words_nor_separators() -> None:
    assert render(SHOP, Item("i")) == Pair("", "")
    assert render(SHOP, Item("i", text="shoe"), query=" ", context={"device": ""}) == Pair("", "shoe")
    assert render("a {item.b} c {item.d}", Item("i", features={"d": "e"})).item == "a c e"
    assert render("always | {item.x}", Item("i")) == Pair("always", "")


def test_every_kind_of_value_is_text() -> None:
    item = Item(
        "i", features={"price": 59.9, "n": 3, "new": True, "used": False, "tags": ["sale", "eco"], "none": None}
    )
    template = "{item.price} | {item.n} | {item.new} | {item.used} | {item.tags} | {item.none}"
    assert render(template, item).item == "59.9 | 3 | yes | no | sale eco"


def test_a_log_without_product_text_is_rendered_from_its_features() -> None:
    item = Item("1535763", features={"price": 77.0})
    template = "{context.city} {context.platform} | price {item.price}"
    assert render(template, item, context={"platform": "CH"}) == Pair("CH", "price 77")


@pytest.mark.parametrize("field", sorted(set(Slate.__struct_fields__) - {"query", "surface"}))
def test_no_other_field_of_a_slate_can_be_named(field: str) -> None:
    with pytest.raises(TemplateError, match=rf"\{{{field}\}}, which the teacher may not see"):
        Template(f"{{query}} | {{{field}}}")


@pytest.mark.parametrize("field", sorted(set(Item.__struct_fields__) - {"text"}))
def test_no_other_field_of_an_item_can_be_named(field: str) -> None:
    with pytest.raises(TemplateError, match=rf"\{{item\.{field}\}}, which the teacher may not see"):
        Template(f"{{query}} | {{item.{field}}}")


@pytest.mark.parametrize("field", ["clicked", "label", "context", "item", "item.", "", "0", "query.x", "session.kind"])
def test_what_is_no_field_cannot_be_named_either(field: str) -> None:
    with pytest.raises(TemplateError, match="may not see"):
        Template(f"{{{field}}}")


def test_the_text_is_the_same_whatever_else_the_slate_says() -> None:
    """The schema test: change all that the teacher may not see, in every way the wire allows."""
    bare = Item("i", text="shoe", features={"brand": "acme"})
    full = Item("other", 7, "shoe", 0.9, {"brand": "acme"}, 0.5, False)
    told = {"query": "red", "surface": "search", "context": {"device": "tv"}}
    later = {"session": [Act("i", "click", T0)], "event_id": "e", "bot": True}
    template = Template("{query} | {surface} | {context.device} | {item.text} | {item.brand}")
    assert template.render(slate(bare, **told), bare) == template.render(slate(full, **told, **later), full)


def test_a_template_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(TemplateError, match="cannot be read"):
        Template("{query")
    with pytest.raises(TemplateError, match="names no field"):
        Template("only words")


def test_the_configuration_names_the_field_at_fault() -> None:
    assert load(None, {}).teacher == TeacherConfig()
    with pytest.raises(BadValueError, match=r"teacher.*\{item\.position\}"):
        load(None, {"HEFT_TEACHER__TEMPLATE": "{query} {item.position}"})
