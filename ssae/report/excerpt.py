"""The beginning of a stranger's text, on one line."""


def one_line(text: str, length: int) -> str:
    """Return the first words of a text, harmless in a terminal, a figure and a page.

    White space becomes single spaces. What has no picture (escape sequences, half surrogate pairs,
    marks that reverse the reading direction) becomes the replacement character.

    Args:
        text: of any size; only its beginning is looked at.
        length: of the result in characters, at most; a longer text ends in an ellipsis.

    >>> one_line("  Four   words, then" + chr(27) + chr(10) + "more of them", 18)
    'Four words, then\ufffd\u2026'
    """
    words = " ".join(text.lstrip()[: 8 * length + 1].split())
    words = "".join(c if c.isprintable() else "\ufffd" for c in words[: length + 1])
    return words if len(words) <= length else f"{words[: length - 1].rstrip()}\u2026"
