"""Read and replace what modules of a model put out, by forward hooks that are always removed."""

import difflib
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

AUTO = "auto"


class _Stop(Exception):  # noqa: N818 - carries no error: it ends a forward pass early
    pass


def read(
    forward: Callable[[], Any],
    modules: Mapping[str, nn.Module],
    shape: torch.Size,
    fn: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """Return {hookpoint: fn(x)} of the modules' outputs x (*shape, d_in); shape: (batch, length).

    The forward stops after the last of them, and runs in inference mode; `fn` does not. A module
    that is called more than once is read the first time.

    Raises:
        ValueError: an output holds no activations, or a module was not called.
    """
    found: dict[str, Tensor] = {}

    def hook(module: nn.Module, args: Any, output: Any, *, hookpoint: str) -> None:
        if hookpoint not in found:
            x = _hidden(output, shape, hookpoint)
            with torch.inference_mode(False), torch.no_grad():
                found[hookpoint] = fn(x)
        if len(found) == len(modules):
            raise _Stop

    handles = [
        module.register_forward_hook(functools.partial(hook, hookpoint=hookpoint))
        for hookpoint, module in modules.items()
    ]
    try:
        with torch.inference_mode():
            forward()
    except _Stop:
        pass
    finally:
        for handle in handles:
            handle.remove()
    for hookpoint in modules:
        if hookpoint not in found:
            raise ValueError(
                f"hookpoint {hookpoint!r} takes no part when the model reads text; "
                "set hookpoint=auto"
            )
    return {hookpoint: found[hookpoint] for hookpoint in modules}


def splice(
    forward: Callable[[], Any],
    edits: Mapping[str, tuple[nn.Module, Callable[[Tensor], Tensor]]],
    shape: torch.Size,
    until: tuple[str, nn.Module] | None = None,
) -> Any:
    """Return what the forward gives with outputs x (*shape, d_in) of modules replaced by fn(x).

    Gradients flow where the caller lets them. A module that is called more than once is edited each
    time.

    Args:
        forward: runs the model.
        edits: {hookpoint: (module, fn)}.
        shape: (batch, length).
        until: (hookpoint, module) whose output, edits included, is returned instead; the forward
            stops there.
    """
    found: list[Tensor] = []

    def edit(
        module: nn.Module, args: Any, output: Any, *, hookpoint: str, fn: Callable[[Tensor], Tensor]
    ) -> Any:
        x = _hidden(output, shape, hookpoint)
        replaced = fn(x).to(x)
        return replaced if isinstance(output, Tensor) else (replaced, *output[1:])

    def stop(module: nn.Module, args: Any, output: Any) -> None:
        assert until is not None
        found.append(_hidden(output, shape, until[0]))
        raise _Stop

    handles = [
        module.register_forward_hook(functools.partial(edit, hookpoint=hookpoint, fn=fn))
        for hookpoint, (module, fn) in edits.items()
    ]
    if until is not None:  # after the edits: of one module's hooks, the later sees what they made
        handles.append(until[1].register_forward_hook(stop))
    try:
        output = forward()
    except _Stop:
        return found[0]
    finally:
        for handle in handles:
            handle.remove()
    if until is not None:
        raise ValueError(
            f"hookpoint {until[0]!r} takes no part when the model reads text; set hookpoint=auto"
        )
    return output


def block_list(model: nn.Module) -> str | None:
    """Return the path of the longest list of modules: the model's blocks."""
    lists = {path: len(m) for path, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    # Lists inside of blocks, such as experts, may be longer than the list of blocks.
    outer = [path for path in lists if not any(path.startswith(f"{other}.") for other in lists)]
    return max(outer, key=lambda path: lists[path], default=None)


def resolve(model: nn.Module, hookpoint: str, name: str) -> str:
    """Return the full name of a hookpoint; "auto" is the block at half depth.

    Raises:
        ValueError: the model called `name` has no such module; gives the nearest and the blocks.
    """
    modules = dict(model.named_modules())
    lists = {path: len(m) for path, m in modules.items() if isinstance(m, nn.ModuleList)}
    blocks = block_list(model)
    if hookpoint == AUTO and blocks is not None:
        return f"{blocks}.{lists[blocks] // 2}"
    # A list of blocks is never called, so nothing comes out of it.
    called = [path for path in modules if path and path not in lists]
    if hookpoint in called:
        return hookpoint
    near = difflib.get_close_matches(hookpoint, called, n=3, cutoff=0.5)
    is_what = "is a list, which is never called," if hookpoint in lists else "is not a module"
    raise ValueError(
        f"hookpoint {hookpoint!r} {is_what} of {name}; "
        + (f"nearest: {', '.join(near)}; " if near else "")
        + (f"blocks: {blocks}.0 .. {blocks}.{lists[blocks] - 1}; " if blocks else "")
        + f"set hookpoint={near[0] if near else AUTO}"
    )


def _hidden(output: Any, shape: torch.Size, hookpoint: str) -> Tensor:
    x = output if isinstance(output, Tensor) else output[0]
    if not isinstance(x, Tensor) or x.ndim != 3 or x.shape[:2] != shape:
        found = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(
            f"hookpoint {hookpoint!r} gives {found} for input_ids of shape {tuple(shape)}, "
            "not (batch, length, d_in); set hookpoint=auto"
        )
    return x
