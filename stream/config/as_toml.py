"""The configuration as TOML, every key with its explanation: the docstrings of the sections, so it cannot be stale."""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from functools import cache
from typing import Any

import msgspec

from heft.stream.config.settings import Config, format_ms, variable_of
from heft.stream.state.credentials import MASK, is_credential, masked

_WIDTH = 100


def to_toml(config: Config, secrets: bool = False) -> str:
    """Return the configuration as TOML that `load` reads again.

    Without secrets, credentials are left out or masked, each with the variable of the environment that supplies it;
    `load` refuses a mask.

    Parameters
    ----------
    config
        What to write.
    secrets
        Write credentials as they are.
    """
    lines: list[str] = []
    seen: set[type] = set()
    for section in config.__struct_fields__:
        value = getattr(config, section)
        if isinstance(value, msgspec.Struct):
            _section(lines, seen, section, value, secrets)
        else:
            for table in value:
                _section(lines, seen, f"[{section}]", table, secrets)
    return "\n".join(lines).strip() + "\n"


@cache
def explanations(kind: type[msgspec.Struct]) -> dict[str, str]:
    """Return field → the text below it in the source."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    found: dict[str, str] = {}
    field = ""
    for statement in definition.body:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) and field:
            found[field] = " ".join(str(statement.value.value).split()).replace("`", "")
        field = ast.unparse(statement.target) if isinstance(statement, ast.AnnAssign) else ""
    return found


def _section(lines: list[str], seen: set[type], name: str, struct: msgspec.Struct, secrets: bool) -> None:
    kind = type(struct)
    # Of several tables of one kind the first is explained.
    explained = {} if kind in seen else explanations(kind)
    lines.append("")
    if kind not in seen:
        lines.append("# " + (kind.__doc__ or "").strip().split("\n")[0].replace("`", ""))
    seen.add(kind)
    lines.append(f"[{name}]")
    below: list[tuple[str, str, msgspec.Struct]] = []
    for field in struct.__struct_fields__:
        value = getattr(struct, field)
        if isinstance(value, msgspec.Struct):
            below.append((f"{name}.{field}", "", value))
            continue
        if isinstance(value, list | tuple) and value and isinstance(value[0], msgspec.Struct):
            texts = [explained.get(field, ""), *("" for _ in value[1:])]
            below += [(f"[{name}.{field}]", text, each) for text, each in zip(texts, value, strict=True)]
            continue
        lines += _comment(explained.get(field, ""))
        if not secrets:
            value = _without_credentials(lines, name, field, value)
        if value is None:
            lines.append(f"# {field} =")
        elif field.endswith("_ms"):
            lines.append(f'{field.removesuffix("_ms")} = "{format_ms(value)}"')
        else:
            lines.append(f"{field} = {_value(value)}")
    for inner, text, each in below:
        if text:
            lines += ["", *_comment(text)]
        _section(lines, seen, inner, each, secrets)


def _without_credentials(lines: list[str], section: str, field: str, value: Any) -> Any:
    """Return what may be printed of a value, and note where the rest comes from; None for nothing."""
    if field == "security":
        hidden = [key for key in value if is_credential(key)]
        lines += [
            f"# {json.dumps(key)} is not printed: {variable_of(section, field, key)} supplies it" for key in hidden
        ]
        return {key: each for key, each in masked(value).items() if key not in hidden}
    if isinstance(value, str) and (shown := masked(value, field)) != value:
        lines.append(f"# The credential is not printed: {variable_of(section, field)} supplies {field}")
        return None if shown == MASK else shown
    return value


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# ")


def _value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return json.dumps(value, ensure_ascii=False)
        case dict():
            return (
                "{ " + ", ".join(f"{json.dumps(k)} = {_value(v)}" for k, v in value.items()) + " }" if value else "{}"
            )
        case list() | tuple():
            flat = "[" + ", ".join(map(_value, value)) + "]"
            if len(flat) <= _WIDTH:
                return flat
            return "[\n" + "".join(f"  {_value(each)},\n" for each in value) + "]"
        case _:
            return repr(value)
