"""What every part of a composed config checks alike."""

import dataclasses
from collections.abc import Mapping
from typing import Any


def check_types(settings: Any, prefix: str = "") -> None:
    """Refuse numbers and texts of the wrong type before they fail somewhere else.

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
            whole = isinstance(value, float) and value % 1 == 0 and field.type is int
            example = int(value) if whole else f"<{rule}>"
            raise ValueError(f"{name} must be {rule}, got {value!r}; set {name}={example}")


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
