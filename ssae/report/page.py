"""Pages: one file, no script, no request."""

import re
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup


def page_environment() -> jinja2.Environment:
    """Return what the templates beside this file are rendered with."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_printable,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


def _printable(value: Any) -> Any:
    """Replace what HTML or UTF-8 cannot carry, wherever a text enters the page.

    Control characters become their visible pictures, half surrogate pairs and non-characters the
    replacement character; characters that reverse the reading direction are shown by their number.
    """
    if isinstance(value, Markup) or not isinstance(value, str):
        return "" if value is None else value
    value = re.sub(r"[\x00-\x08\x0b-\x1f]", lambda match: chr(0x2400 + ord(match[0])), value)
    value = re.sub(r"[\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]", "\ufffd", value)
    return re.sub(r"[\u202a-\u202e\u2066-\u2069]", lambda match: f"<U+{ord(match[0]):X}>", value)
