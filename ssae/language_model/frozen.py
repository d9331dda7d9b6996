"""A frozen Hugging Face language model: read and replace the activations at one module's output.

lm = LanguageModel("EleutherAI/pythia-70m")
x = lm.capture(input_ids, "gpt_neox.layers.3")            # (batch, length, d_in); stops there
logits = lm.splice(input_ids, "gpt_neox.layers.3", fn)    # fn maps x to what replaces it
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer

from ssae.artifact.manifest import file_sha256
from ssae.language_model import hooks, pretrained
from ssae.language_model.hooks import AUTO
from ssae.language_model.pretrained import DTYPES, QUANTIZATIONS, from_pretrained
from ssae.process.ranks import local_rank

TOKENIZER_FILES = ("*token*.json", "vocab*", "merges.txt", "*.model")


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A causal language model or an encoder; weights load on first use.

    Args:
        name: Hugging Face repository id or local directory, with safetensors weights.
        revision: branch, tag or commit of the repository; null is its default branch.
        dtype: "auto" (as stored), "float32", "bfloat16" or "float16".
        device: "auto" (this rank's GPU if there is one) or a torch device.
        device_map: spreads the model over devices, as in transformers ("auto", "balanced",
            "sequential", a torch device, a dict of module paths); null: all of it on `device`.
        quantization: "8bit" (LLM.int8) or "4bit" (NF4), by bitsandbytes; null: as stored.

    Raises:
        ValueError: a setting is unknown; on use, when the model cannot be found or loaded.
    """

    name: str
    revision: str | None = None
    dtype: str = AUTO
    device: str = dataclasses.field(default=AUTO, metadata={"content": False})
    device_map: str | dict[str, Any] | None = dataclasses.field(
        default=None, hash=False, metadata={"content": False}
    )
    quantization: str | None = None

    def __post_init__(self) -> None:
        for name, choices in (("dtype", (AUTO, *DTYPES)), ("quantization", (None, *QUANTIZATIONS))):
            value = getattr(self, name)
            if value not in choices:
                spelt = ", ".join("null" if choice is None else choice for choice in choices)
                raise ValueError(
                    f"language_model.{name} must be one of {spelt}, got {value!r}; "
                    f"set language_model.{name}={choices[0] or 'null'}"
                )
        pretrained.check_devices(self.device, self.device_map)
        if self.device_map is not None and self.device != AUTO:
            raise ValueError(
                f"language_model.device_map={self.device_map!r} already says where the model is, "
                f"got device={self.device!r} too; set language_model.device=auto"
            )

    def identity(self) -> dict[str, Any]:
        """Return what decides the activations: the commit, or the checksums of a directory."""
        return self._files(("*.safetensors", *TOKENIZER_FILES, "config.json")) | {
            "dtype": self.dtype,
            "quantization": self.quantization,
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
        return from_pretrained(AutoConfig, self.name, self.revision)

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return from_pretrained(AutoTokenizer, self.name, self.revision)

    @functools.cached_property
    def model(self) -> Any:
        """The model, in eval mode, without gradients."""
        options = pretrained.placement(
            self._config, self.dtype, self._own_device, self.device_map, self.quantization
        )
        model = pretrained.load(self._config, self.name, self.revision, options)
        placed = model if "device_map" in options else model.to(self._own_device)
        return placed.eval().requires_grad_(False)

    @property
    def is_causal(self) -> bool:
        """Whether the model predicts the next token; an encoder does not."""
        return pretrained.has_causal_head(self._config)

    def check_causal(self) -> None:
        """Refuse a model without next-token predictions.

        Raises:
            ValueError: the model is an encoder.
        """
        if not self.is_causal:
            kind = ", ".join(self._config.architectures or ["no architecture in config.json"])
            raise ValueError(
                f"evaluation needs a causal language model, got {self.name} ({kind}); set "
                "language_model.name=<one>, or go no further than `ssae train` with this one"
            )

    @property
    def device_used(self) -> str:
        """The torch device that the model's input goes to."""
        if self.device_map is not None:
            device = self.model.get_input_embeddings().weight.device
            if device.type != "meta":  # offloaded weights: accelerate moves the input itself
                return str(device)
        return self._own_device

    @property
    def _own_device(self) -> str:
        if self.device != AUTO:
            return self.device
        if not torch.cuda.is_available():
            return "cpu"
        # A launcher may show each rank only its own GPU: then that is number 0.
        return f"cuda:{local_rank() % torch.cuda.device_count()}"

    @functools.cached_property
    def special_ids(self) -> Tensor:
        """Token ids of the tokenizer's special tokens, which carry no text; unknown words do."""
        said = self.tokenizer
        also = {said.bos_token_id, said.eos_token_id, said.cls_token_id, said.sep_token_id}
        ids = set(said.all_special_ids) - ({said.unk_token_id} - also)
        return torch.tensor(sorted(ids), dtype=torch.int64)

    @property
    def vocab_size(self) -> int:
        """Number of token types."""
        return self._config.get_text_config().vocab_size

    @property
    def max_context_length(self) -> int | None:
        """Tokens of the longest row the model has positions for; None where it has no limit."""
        return pretrained.max_context_length(self.model)

    def resolve(self, hookpoint: str) -> str:
        """Return the full name of a hookpoint; "auto" is the block at half depth.

        Raises:
            ValueError: the model has no such module; names the nearest and the blocks.
        """
        return hooks.resolve(self.model, hookpoint, self.name)

    def capture(
        self, input_ids: Tensor, hookpoint: str, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Return the module's output (batch, length, d_in); the forward stops right after it."""
        return self.capture_all(input_ids, [hookpoint], attention_mask)[hookpoint]

    def capture_all(
        self, input_ids: Tensor, hookpoints: Sequence[str], attention_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return {hookpoint: (batch, length, d_in)}; one forward, which stops after the last."""
        return self.read(input_ids, hookpoints, torch.clone, attention_mask)

    def read(
        self,
        input_ids: Tensor,
        hookpoints: Sequence[str],
        fn: Callable[[Tensor], Tensor],
        attention_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return {hookpoint: fn(x)} of the outputs x (batch, length, d_in) of several modules.

        The forward stops after the last of them. It runs in inference mode and `fn` does not, so
        that a tensor made from x is an ordinary one, which an SAE can be trained on. A module that
        is called more than once is read the first time.

        Args:
            input_ids: (batch, length).
            hookpoints: module paths; see `resolve`.
            fn: returns a new tensor, no view of x: the model may change x later.
            attention_mask: (batch, length), 0 where padded; null when nothing is.

        Raises:
            ValueError: a hookpoint is missing or given twice, or gives no activations.
        """
        modules = self._modules(hookpoints)
        forward = functools.partial(self._forward, input_ids, attention_mask)
        return hooks.read(forward, modules, input_ids.shape, fn)

    def splice(
        self,
        input_ids: Tensor,
        hookpoint: str,
        fn: Callable[[Tensor], Tensor],
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Return logits (batch, length, vocab) with the module's output x replaced by fn(x).

        Raises:
            ValueError: the model is an encoder: it has no logits.
        """
        self.check_causal()
        [module] = self._modules([hookpoint]).values()
        forward = functools.partial(self._forward, input_ids, attention_mask)
        with torch.no_grad():
            return hooks.splice(forward, {hookpoint: (module, fn)}, input_ids.shape).logits

    def capture_spliced(
        self,
        input_ids: Tensor,
        hookpoint: str,
        edits: Mapping[str, Callable[[Tensor], Tensor]],
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the module's output (batch, length, d_in) with those of others replaced.

        Args:
            input_ids: (batch, length).
            hookpoint: whose output is returned; the forward stops there.
            edits: {hookpoint: fn}, fn maps x to what replaces it. They may be differentiated.
            attention_mask: (batch, length), 0 where padded.
        """
        # One by one: the hookpoint may be among those that are edited.
        [last] = self._modules([hookpoint]).values()
        modules = self._modules(list(edits)) if edits else {}
        replaced = {name: (module, edits[name]) for name, module in modules.items()}
        forward = functools.partial(self._forward, input_ids, attention_mask)
        return hooks.splice(forward, replaced, input_ids.shape, (hookpoint, last))

    def _forward(self, input_ids: Tensor, attention_mask: Tensor | None) -> Any:
        device = self.device_used
        mask = None if attention_mask is None else attention_mask.to(device)
        return self._reader(input_ids=input_ids.to(device), attention_mask=mask)

    @functools.cached_property
    def _reader(self) -> Callable[..., Any]:
        model = self.model
        if getattr(self._config, "is_encoder_decoder", False) and not self.is_causal:
            model = model.get_encoder()  # the decoder wants a text of its own
        keeps_cache = "use_cache" in inspect.signature(model.forward).parameters
        return functools.partial(model, use_cache=False) if keeps_cache else model

    def _modules(self, hookpoints: Sequence[str]) -> dict[str, nn.Module]:
        if not hookpoints:
            raise ValueError("hookpoints must name at least one module; set hookpoint=auto")
        modules = {}
        for hookpoint in hookpoints:
            try:
                module = self.model.get_submodule(hookpoint)
            except AttributeError:  # "auto", or a name that is not there: resolve explains
                module = self.model.get_submodule(self.resolve(hookpoint))
            if any(module is other for other in modules.values()):
                raise ValueError(
                    f"hookpoint {hookpoint!r} is given twice in {list(hookpoints)}; remove one"
                )
            modules[hookpoint] = module
        return modules
