"""A frozen Hugging Face language model: read and replace the activations at one module's output.

lm = LanguageModel("EleutherAI/pythia-70m")
x = lm.capture(input_ids, "gpt_neox.layers.3")            # (batch, length, d_in); stops there
logits = lm.splice(input_ids, "gpt_neox.layers.3", fn)    # fn maps x to what replaces it
"""

import dataclasses
import difflib
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ssae.artifact import file_sha256

AUTO = "auto"
TOKENIZER_FILES = ("*token*.json", "vocab*", "merges.txt", "*.model")
DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}


class _Stop(Exception):  # noqa: N818 - carries no error: it ends a forward pass early
    pass


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A causal language model by Hugging Face name or local directory; weights load on first use.

    Args:
        name: repository id or directory.
        revision: branch, tag or commit of the repository; null is its default branch.
        dtype: "auto" (as stored), "float32", "bfloat16" or "float16".
        device: "auto" (the first GPU if there is one) or a torch device.

    Raises:
        ValueError: on use, when the model cannot be found or the dtype is unknown.
    """

    name: str
    revision: str | None = None
    dtype: str = AUTO
    device: str = dataclasses.field(default=AUTO, metadata={"content": False})

    def __post_init__(self) -> None:
        if self.dtype not in (AUTO, *DTYPES):
            raise ValueError(
                f"language_model.dtype must be one of auto, {', '.join(DTYPES)}, got {self.dtype!r}"
            )

    def identity(self) -> dict[str, Any]:
        """Return what decides the activations: the commit, or the checksums of a directory."""
        return self._files(("*.safetensors", *TOKENIZER_FILES, "config.json")) | {
            "dtype": self.dtype
        }

    def tokenizer_identity(self) -> dict[str, Any]:
        """Return what decides the tokens alone."""
        return self._files(TOKENIZER_FILES)

    def _files(self, patterns: tuple[str, ...]) -> dict[str, Any]:
        folder = Path(self.name)
        if folder.is_dir():
            files = sorted({path for pattern in patterns for path in folder.glob(pattern)})
            return {"files": {path.name: file_sha256(path) for path in files}}
        return {"name": self.name, "commit": getattr(self._config, "_commit_hash", None)}

    @functools.cached_property
    def _config(self) -> Any:
        return self._load(AutoConfig)

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self._load(AutoTokenizer)

    @functools.cached_property
    def model(self) -> nn.Module:
        """The model, in eval mode, without gradients."""
        dtype = self.dtype if self.dtype == AUTO else DTYPES[self.dtype]
        # safetensors only: a .bin checkpoint is a pickle.
        model = self._load(AutoModelForCausalLM, dtype=dtype, use_safetensors=True)
        return model.to(self.device_used).eval().requires_grad_(False)

    @property
    def device_used(self) -> str:
        """The torch device the model runs on."""
        if self.device != AUTO:
            return self.device
        return "cuda" if torch.cuda.is_available() else "cpu"

    @functools.cached_property
    def special_ids(self) -> Tensor:
        """Token ids of the tokenizer's special tokens: they carry no text."""
        return torch.tensor(sorted(self.tokenizer.all_special_ids), dtype=torch.int64)

    @property
    def vocab_size(self) -> int:
        """Number of token types."""
        return self._config.get_text_config().vocab_size

    def resolve(self, hookpoint: str) -> str:
        """Return the full name of a hookpoint; "auto" is the block at half depth.

        Raises:
            ValueError: the model has no such module; names the nearest and the blocks.
        """
        modules = dict(self.model.named_modules())
        blocks = max(
            (name for name, module in modules.items() if isinstance(module, nn.ModuleList)),
            key=lambda name: len(modules[name]),  # pyright: ignore[reportArgumentType]
            default=None,
        )
        if hookpoint == AUTO and blocks is not None:
            return f"{blocks}.{len(modules[blocks]) // 2}"  # pyright: ignore[reportArgumentType]
        # A list of blocks is never called, so nothing comes out of it.
        called = [n for n, m in modules.items() if n and not isinstance(m, nn.ModuleList)]
        if hookpoint in called:
            return hookpoint
        near = difflib.get_close_matches(hookpoint, called, n=3, cutoff=0.5)
        last = len(modules[blocks]) - 1 if blocks else 0  # pyright: ignore[reportArgumentType]
        raise ValueError(
            f"hookpoint {hookpoint!r} is not a module of {self.name}; "
            + (f"nearest: {', '.join(near)}; " if near else "")
            + f"blocks: {blocks}.0 .. {blocks}.{last}; set hookpoint={near[0] if near else AUTO}"
        )

    def _module(self, hookpoint: str) -> nn.Module:
        try:
            return self.model.get_submodule(hookpoint)
        except AttributeError:  # "auto", or a name that is not there: resolve explains
            return self.model.get_submodule(self.resolve(hookpoint))

    @torch.no_grad()
    def capture(self, input_ids: Tensor, hookpoint: str) -> Tensor:
        """Return the module's output (batch, length, d_in); the forward stops right after it."""
        captured: list[Tensor] = []

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            captured.append(_hidden(output, input_ids, hookpoint))
            raise _Stop

        handle = self._module(hookpoint).register_forward_hook(hook)
        try:
            self.model(input_ids=input_ids.to(self.device_used), use_cache=False)
        except _Stop:
            pass
        finally:
            handle.remove()
        return captured[0]

    @torch.no_grad()
    def splice(self, input_ids: Tensor, hookpoint: str, fn: Callable[[Tensor], Tensor]) -> Tensor:
        """Return logits (batch, length, vocab) with the module's output x replaced by fn(x)."""

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            x = _hidden(output, input_ids, hookpoint)
            replaced = fn(x).to(x.dtype)
            return replaced if isinstance(output, Tensor) else (replaced, *output[1:])

        handle = self._module(hookpoint).register_forward_hook(hook)
        try:
            return self.model(input_ids=input_ids.to(self.device_used), use_cache=False).logits
        finally:
            handle.remove()

    def _load(self, auto_class: Any, **options: Any) -> Any:
        try:
            return auto_class.from_pretrained(self.name, revision=self.revision, **options)
        except (OSError, ValueError) as error:
            first_line = str(error).strip().splitlines()[0]
            offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
            raise ValueError(
                f"cannot load language model {self.name!r}: {first_line} "
                "It must be a directory with safetensors weights or a Hugging Face repository"
                + (" in the local cache (HF_HUB_OFFLINE is set)" if offline else "")
                + "; set language_model.name=<directory or repository>"
            ) from error


def _hidden(output: Any, input_ids: Tensor, hookpoint: str) -> Tensor:
    x = output if isinstance(output, Tensor) else output[0]
    if not isinstance(x, Tensor) or x.ndim != 3 or x.shape[:2] != input_ids.shape:
        found = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(
            f"hookpoint {hookpoint!r} gives {found} for input_ids of shape "
            f"{tuple(input_ids.shape)}, not (batch, length, d_in); set hookpoint=auto"
        )
    return x
