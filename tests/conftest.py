"""Tiny language models and studies: nothing is downloaded, everything is seeded."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"

import functools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import pytest
import tokenizers
import torch
import transformers

from ssae.activation.shards import Activations, ShardWriter, Tokens
from ssae.arm import Arm
from ssae.artifact import build
from ssae.corpus.files import Files
from ssae.language_model import LanguageModel
from ssae.objective.erm import ERM
from ssae.retriever.random import Random
from ssae.sae.topk import TopKSAE
from ssae.study import Export, Study
from ssae.training import Training

torch.set_num_threads(1)

WORDS = [
    "the", "of", "a", "in", "to", "sample", "mean", "variance", "random", "number", "matrix",
    "vector", "returns", "array", "value", "array_like", "optional", "parameter", "shape",
    "distribution", "normal", "gamma", "poisson", "test", "file", "string", "path", "module",
]  # fmt: skip


def sentences(seed: int, num_documents: int, num_words: int) -> list[str]:
    """Random documents over a small, skewed vocabulary."""
    generator = random.Random(seed)
    weights = [1 / (rank + 1) for rank in range(len(WORDS))]
    return [
        " ".join(generator.choices(WORDS, weights, k=generator.randint(5, num_words)))
        for _ in range(num_documents)
    ]


def tokenizer_with(**special: str) -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that knows every byte; special tokens get the first ids."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(dict.fromkeys(special.values())),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences(0, 100, 50), trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Any]:
    return tokenizer_with


@pytest.fixture(scope="session")
def neox_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-NeoX whose bos token is id 0, as in Pythia."""
    folder = tmp_path_factory.mktemp("neox")
    tokenizer_with(bos_token="<|endoftext|>", eos_token="<|endoftext|>").save_pretrained(folder)
    config = transformers.GPTNeoXConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64, initializer_range=0.4,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.GPTNeoXForCausalLM(config).save_pretrained(folder)
    return folder


def save_llama_like(folder: Path, config: type, model: type, seed: int, **changes: Any) -> Path:
    """A random two-layer model with different bos and eos tokens."""
    tokenizer_with(unk_token="<unk>", bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    settings = config(
        vocab_size=300, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=32, max_position_embeddings=64,
        initializer_range=0.4, bos_token_id=1, eos_token_id=2, **changes,
    )  # fmt: skip
    torch.manual_seed(seed)
    model(settings).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    return save_llama_like(folder, transformers.LlamaConfig, transformers.LlamaForCausalLM, 1)


@pytest.fixture(scope="session")
def mistral_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its sliding window needs an attention mask of the batch's size."""
    return save_llama_like(
        tmp_path_factory.mktemp("mistral"), transformers.MistralConfig,
        transformers.MistralForCausalLM, 2, head_dim=8, sliding_window=8,
    )  # fmt: skip


@pytest.fixture(scope="session")
def neox(neox_folder: Path) -> LanguageModel:
    return LanguageModel(str(neox_folder), device="cpu")


@pytest.fixture(scope="session")
def llama(llama_folder: Path) -> LanguageModel:
    return LanguageModel(str(llama_folder), device="cpu")


@pytest.fixture(scope="session")
def mistral(mistral_folder: Path) -> LanguageModel:
    return LanguageModel(str(mistral_folder), device="cpu")


@pytest.fixture(scope="session")
def corpus_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One .jsonl file for each split of a corpus."""
    folder = tmp_path_factory.mktemp("corpus")
    paths = {}
    for seed, (name, num_documents) in enumerate(
        {"pool": 120, "seeds": 6, "subdomain_test": 12, "general_test": 12}.items()
    ):
        lines = [
            json.dumps({"text": text, "source": f"{name}.{index}"})
            for index, text in enumerate(sentences(seed, num_documents, 40))
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        paths[name] = str(folder / f"{name}.jsonl")
    return paths


@pytest.fixture(scope="session")
def make_study(neox_folder: Path, corpus_files: dict[str, str]) -> Callable[..., Study]:
    """Return a function that builds a study of two arms, `first` and `second` (from `first`)."""

    def make(folder: Path, **changes: Any) -> Study:
        files = Files(
            **corpus_files, min_characters=1, subdomain_source=None, test_share=0.5,
            general_test_share=0.5, text_field="text", source_field="source",
        )  # fmt: skip
        training = Training(
            batch_size_tokens=64, warmup_steps=4, decay_share=0.2,
            optimizer=functools.partial(torch.optim.Adam, betas=(0.9, 0.999)),
            dead_after_tokens=256, initial_b_dec="mean", resample_every_steps=None,
            resample_share=0.75, recycle_firing_rate=0.0, sparsity_warmup_steps=4,
            screening="exact",
            checkpoint_every_steps=10,
        )  # fmt: skip
        trainer = functools.partial(
            lightning.Trainer, accelerator="cpu", devices=1, precision="32-true",
            log_every_n_steps=1, enable_progress_bar=False,
        )  # fmt: skip
        arms = {
            name: Arm(
                retriever=Random(seed=0, draw=name), budget_tokens=1200, init_from=init_from,
                start="fine_tune", objective=ERM(), num_tokens=20 * 64, lr=3e-3,
            )
            for name, init_from in (("first", None), ("second", "first"))
        }  # fmt: skip
        study = {
            "name": "tiny", "seed": 0, "artifacts": folder / "artifacts",
            "run_dir": folder / "run", "corpus": files,
            "language_model": LanguageModel(str(neox_folder), device="cpu"),
            "hookpoint": "gpt_neox.layers.1", "context_length": 32, "bos": "row",
            "harvest_batch_tokens": 512, "shard_tokens": 500,
            "sae": functools.partial(
                TopKSAE, d_sae=64, k=4, auxk_coefficient=1 / 32, k_aux=8
            ),
            "extra_sae": None, "training": training, "trainer": trainer, "logger": None,
            "arm": "second", "arms": arms, "compare": {},
            "frequency_retriever": Random(seed=0, draw="frequency"), "frequency_tokens": 1000,
            "evaluation_batch_tokens": 256, "evaluation_tokens": 600, "num_bootstraps": 50,
            "export": Export(sae=None, format="saelens", path=None),
        }  # fmt: skip
        return Study(**(study | changes))

    return make


class Harvest(NamedTuple):
    """Tokens, and the activations that read them back from shards."""

    tokens: Tokens
    activations: Activations


@pytest.fixture
def write_tokens(tmp_path: Path) -> Callable[..., Harvest]:
    """Return a function that writes tokens to shards, in pieces of uneven size."""

    def write(tokens: Tokens, shard_tokens: int, vocab_size: int = 50) -> Harvest:
        def make(folder: Path) -> dict[str, object]:
            writer = ShardWriter(folder, shard_tokens, vocab_size)
            start, size = 0, 1
            while start < len(tokens.token_ids):
                writer.write(Tokens(*(column[start : start + size] for column in tokens)))
                start, size = start + size, size % 7 + 3
            return writer.close()

        artifact = build(tmp_path, "harvest", {"shard_tokens": shard_tokens}, make)
        return Harvest(tokens, Activations(artifact))

    return write


@pytest.fixture(scope="session")
def random_tokens() -> Callable[..., Tokens]:
    """Return a function that draws tokens of documents of length 10."""

    def draw(num_tokens: int, d_in: int = 4, dtype: torch.dtype = torch.float32) -> Tokens:
        generator = torch.Generator().manual_seed(num_tokens)
        index = torch.arange(num_tokens, dtype=torch.int32)
        return Tokens(
            (torch.randn(num_tokens, d_in, generator=generator) * 3 + 1).to(dtype),
            torch.randint(50, (num_tokens,), generator=generator).int(),
            index // 10,
            index % 10,
        )

    return draw
