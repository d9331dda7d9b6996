"""What every part of a composed config checks alike."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any


def check_types(
    settings: Any, prefix: str = "", remedy: Callable[[str], str] | None = None
) -> None:
    """Refuse numbers and texts of the wrong type before they fail somewhere else.

    Args:
        settings: a dataclass; a field's metadata "example", or else its default, is what is
            proposed instead.
        prefix: of the names, as overrides spell them.
        remedy: of a field, where its name with the prefix is no override.

    Raises:
        ValueError: names the setting, what it must be and what it is.
    """
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.type not in words:
            continue
        wanted = (int, float) if field.type is float else field.type
        if field.type is bool:
            wrong = not isinstance(value, bool)
        else:
            wrong = isinstance(value, bool) or not isinstance(value, wanted)  # pyright: ignore[reportArgumentType]
        if wrong:
            name, rule = f"{prefix}{field.name}", words[field.type]
            raise ValueError(
                f"{name} must be {rule}, got {value!r}; "
                + (remedy(field.name) if remedy else f"set {name}={_example(field, value, rule)}")
            )


def _example(field: dataclasses.Field[Any], value: Any, rule: str) -> Any:
    if isinstance(value, float) and value % 1 == 0 and field.type is int:
        return int(value)
    if "example" in field.metadata or field.default is dataclasses.MISSING:
        return field.metadata.get("example", f"<{rule}>")
    return field.default


def check_least(settings: Any, bounds: Mapping[str, tuple[int, int]], prefix: str = "") -> None:
    """Refuse numbers that are too small.

    Args:
        settings: have them as attributes.
        bounds: {name: (the least it may be, an example)}.
        prefix: of the names, as overrides spell them.

    Raises:
        ValueError: names the setting, its bound and what it is.
    """
    for name, (least, example) in bounds.items():
        value = getattr(settings, name)
        if value < least:
            raise ValueError(
                f"{prefix}{name} must be at least {least}, got {value}; "
                f"set {prefix}{name}={example}"
            )
