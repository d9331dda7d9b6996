"""Passes that start at a block: those before it are not computed when its output is known."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from ssae.language_model.frozen import LanguageModel
from ssae.language_model.hooks import block_list


def rest_of(
    lm: LanguageModel, hookpoint: str, last: str
) -> contextlib.AbstractContextManager[None]:
    """Return a context in which passes to `last` compute only what follows the hookpoint.

    For passes that replace the hookpoint's output whole. Where it is no block, or blocks after it
    read more than the hidden states, which is tried once, everything is computed.
    """
    way = _way(lm, hookpoint, last)
    if way is None:
        return contextlib.nullcontext()
    return _passing_over(_blocks_up_to(lm.model, hookpoint), way)


@functools.cache
@torch.no_grad()
def _way(lm: LanguageModel, hookpoint: str, last: str) -> bool | None:
    """Return whether blocks return tuples; None where none can be passed over."""
    blocks = _blocks_up_to(lm.model, hookpoint)
    if not blocks:
        return None
    ids = torch.arange(1, 9)[None] % lm.vocab_size
    clean = lm.capture_all(ids, list(dict.fromkeys([hookpoint, last])))
    for way in (False, True):
        with contextlib.suppress(Exception), _passing_over(blocks, way):
            found = lm.capture_spliced(ids, last, {hookpoint: lambda _: clean[hookpoint]})
            if torch.equal(found, clean[last]):
                return way
    return None


@contextlib.contextmanager
def _passing_over(blocks: Sequence[nn.Module], gives_tuple: bool) -> Iterator[None]:
    """Make blocks return the hidden states they are given, without computing anything.

    Args:
        blocks: of a model whose blocks take hidden states first.
        gives_tuple: whether they return a tuple that begins with them.
    """

    def pass_over(*args: Any, **kwargs: Any) -> Any:
        x = args[0] if args else kwargs["hidden_states"]
        return (x,) if gives_tuple else x

    originals = [block.forward for block in blocks]
    try:
        for block in blocks:
            block.forward = pass_over
        yield
    finally:
        for block, original in zip(blocks, originals, strict=True):
            block.forward = original


def _blocks_up_to(model: nn.Module, hookpoint: str) -> list[nn.Module]:
    """Return the model's blocks up to the one that is the hookpoint; none if it is no block."""
    path, _, number = hookpoint.rpartition(".")
    if path != block_list(model) or not number.isdigit():
        return []
    return list(model.get_submodule(path))[: int(number) + 1]  # pyright: ignore[reportArgumentType]
