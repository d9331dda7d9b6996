"""Tiny language models and studies: nothing is downloaded, everything is seeded."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"

import dataclasses
import functools
import json
import pickle
import random
import re
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import lightning
import pytest
import tokenizers
import torch
import transformers

from ssae.activation.datamodule import Shards
from ssae.activation.reader import Activations
from ssae.activation.rows import Rows
from ssae.activation.shards import Tokens, write_statistics
from ssae.activation.writer import ShardWriter
from ssae.arm import Arm, Training
from ssae.artifact.store import Artifact, build
from ssae.corpus import hub
from ssae.corpus.base import SPLITS, Corpus, load_split
from ssae.corpus.files import Files
from ssae.corpus.part import Part
from ssae.diagnosis.settings import Diagnose
from ssae.labelled.synthetic import SyntheticBios
from ssae.language_model.frozen import LanguageModel
from ssae.objective.erm import ERM
from ssae.pool.pool import Pool
from ssae.probe.linear import Logistic
from ssae.probe.settings import Shift
from ssae.read_pool import read_corpus
from ssae.retriever.random import Random
from ssae.sae.base import SparseAutoencoder
from ssae.sae.batchtopk import BatchTopKSAE
from ssae.sae.gated import GatedSAE
from ssae.sae.jumprelu import JumpReLUSAE
from ssae.sae.matryoshka import MatryoshkaSAE
from ssae.sae.relu import ReLUSAE
from ssae.sae.topk import TopKSAE
from ssae.selection import Selection
from ssae.study import Export, Polish, Study
from ssae.tokenise import tokenise

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


def biographies(**changes: Any) -> SyntheticBios:
    """The settings of small synthetic labelled documents."""
    values = {
        "label": "profession", "spurious": "gender", "num_documents": 160, "correlation": 0.75,
        "purity": 0.9, "cues": 0.8, "seed": 0,
    }  # fmt: skip
    return SyntheticBios(**values | changes)


@pytest.fixture(autouse=True)
def heed_sigint() -> None:
    """A shell has the jobs in its background ignore SIGINT; tests send it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def no_known_commits() -> Iterator[None]:
    """A commit of the hub is asked for once in a process."""
    hub.commit_of.cache_clear()
    yield
    hub.commit_of.cache_clear()


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
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder stored with another head than next-token prediction."""
    folder = tmp_path_factory.mktemp("bert")
    tokenizer_with(
        pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]"
    ).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64, initializer_range=0.4,
    )  # fmt: skip
    torch.manual_seed(3)
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def t5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder with a decoder behind it."""
    folder = tmp_path_factory.mktemp("t5")
    tokenizer_with(pad_token="<pad>", eos_token="</s>", unk_token="<unk>").save_pretrained(folder)
    config = transformers.T5Config(
        vocab_size=300, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
        decoder_start_token_id=0, initializer_factor=2.0,
    )  # fmt: skip
    torch.manual_seed(4)
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def t5(t5_folder: Path) -> LanguageModel:
    return LanguageModel(str(t5_folder), device="cpu")


@pytest.fixture(scope="session")
def bert(bert_folder: Path) -> LanguageModel:
    return LanguageModel(str(bert_folder), device="cpu")


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
def all_saes() -> Callable[..., dict[str, functools.partial[SparseAutoencoder]]]:
    """Return a function that gives an SAE of each architecture, as a study has it."""

    def make(
        d_sae: int, k: int, group_sizes: list[int]
    ) -> dict[str, functools.partial[SparseAutoencoder]]:
        common = {"d_sae": d_sae, "auxk_coefficient": 1 / 32, "k_aux": 8}
        return {
            "topk": functools.partial(TopKSAE, k=k, **common),
            "batchtopk": functools.partial(BatchTopKSAE, k=k, **common),
            "matryoshka": functools.partial(MatryoshkaSAE, k=k, group_sizes=group_sizes, **common),
            "jumprelu": functools.partial(
                JumpReLUSAE, l0_coefficient=1.0, target_l0=float(k), bandwidth=1.0,
                initial_threshold=1.0, threshold_lr=1e-2, **common,
            ),
            "relu": functools.partial(ReLUSAE, l1_coefficient=0.1, **common),
            "gated": functools.partial(GatedSAE, l1_coefficient=0.1, **common),
        }  # fmt: skip

    return make


@pytest.fixture(scope="session")
def make_study(neox_folder: Path, corpus_files: dict[str, str]) -> Callable[..., Study]:
    """Return a function that builds a study of two arms, `first` and `second` (from `first`)."""

    def make(folder: Path, **changes: Any) -> Study:
        files = Files(
            **corpus_files, min_characters=1, max_characters=None, subdomain_source=None,
            test_share=0.5, general_test_share=0.5, text_field="text", source_field="source",
            num_workers=0,
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
            "hookpoint": "gpt_neox.layers.1", "hookpoints": None, "context_length": 32,
            "bos": "row", "packing": "packed",
            "activation": Shards(window_tokens=2**20, block_tokens=64, read_ahead=False),
            "harvest_batch_tokens": 512, "shard_tokens": 500,
            "sae": functools.partial(
                TopKSAE, d_sae=64, k=4, auxk_coefficient=1 / 32, k_aux=8
            ),
            "extra_sae": None, "training": training, "trainer": trainer, "logger": None,
            "arm": "second", "arms": arms, "compare": {},
            "selection": Selection(near_duplicates=0.8, seed_share=1.0),
            "frequency_retriever": Random(seed=0, draw="frequency"), "frequency_tokens": 1000,
            "evaluation_batch_tokens": 256, "evaluation_tokens": 600, "num_bootstraps": 50,
            "minimise": "subdomain_test/perplexity_spliced/second",
            "export": Export(sae=None, format="saelens", path=None),
            "labelled": biographies(),
            "shift": Shift(
                label="profession", spurious="gender", classes=None, values=None,
                generalist="first", specialist="second", control=None, hookpoints=None,
                widths=[1, 0.5], seeds=[0, 1], num_folds=2, min_documents=2, probe=Logistic(C=1.0),
                attribution="integrated_gradients", attribution_steps=4, num_examples=8,
                num_candidates=8, min_effect=0.0, min_selectivity=0.55,
                word_pairs=[["he", "she"], ["his", "her"], ["him", "her"]], examples=None,
                candidates=None, concepts=["nurse", "ward"], num_contexts=2,
            ),
            "diagnose": Diagnose(
                arms=None, saes=[], lam=None, sample_tokens=500, cone_latents=8, min_fires=3,
                gap_tokens=60,
            ),
            "polish": Polish(
                sae=None, lam=None, rounds=2, num_tokens=600, held_out=None, held_out_tokens=300,
                encoder_steps=10, batch_size_tokens=64, lr=1e-3,
            ),
        }  # fmt: skip
        return Study(**(study | changes))

    return make


class Corpora(NamedTuple):
    """A corpus that has been read: what unit tests ask for."""

    study: Study
    artifact: Artifact
    pool: Pool

    def documents(self, split: str) -> list[tuple[str, str]]:
        """(text, source) of the documents of a split."""
        if split == "pool":
            return list(zip(self.pool.texts(), self.pool.sources(), strict=True))
        rows = load_split(self.artifact, split)
        return list(zip(rows["text"], rows["source"], strict=True))

    def texts(self, split: str) -> list[str]:
        return [text for text, _ in self.documents(split)]


@dataclasses.dataclass(frozen=True)
class ListedPart(Part):
    """Documents in memory, (text, source) each."""

    rows: list

    def documents(self):
        for text, source in self.rows:
            yield {"text": text, "source": source}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listed(Corpus):
    """A corpus in memory: a list of parts, and splits; a document is (text, source)."""

    min_characters: int = 3
    max_characters: int | None = None
    subdomain_source: str | None = None
    num_workers: int | None = dataclasses.field(default=0, metadata={"content": False})
    parts_of_pool: list
    splits: dict

    def identity(self):
        return {}

    def pool_identity(self):
        return {
            "pool": self.parts_of_pool,
            "characters": [self.min_characters, self.max_characters],
        }

    def parts(self):
        return [ListedPart(rows) for rows in self.parts_of_pool]

    def own_documents(self):
        return {name: ListedPart(rows).documents() for name, rows in self.splits.items()}


@pytest.fixture(scope="session")
def listed() -> Callable[..., Listed]:
    """Return a function that gives a corpus of texts, or (text, source), in memory."""

    def sourced(rows: list) -> list:
        return [(row, "web") if isinstance(row, str) else tuple(row) for row in rows]

    def make(*parts: list, **changes: Any) -> Listed:
        splits = {
            "seeds": ["seed one"], "subdomain_test": ["sub test"], "general_test": ["gen test"],
        }  # fmt: skip
        splits |= {name: changes.pop(name) for name in SPLITS[1:] if name in changes}
        splits = {name: sourced(rows) for name, rows in splits.items()}
        return Listed(parts_of_pool=[sourced(rows) for rows in parts], splits=splits, **changes)

    return make


@pytest.fixture
def read(make_study: Callable[..., Study], tmp_path: Path) -> Callable[..., Corpora]:
    """Return a function that reads a corpus: as verbs do, but for the rest of the study."""

    def make(corpus: Corpus, folder: Path = tmp_path, **changes: Any) -> Corpora:
        study = make_study(folder, corpus=corpus, **changes)
        artifact = read_corpus(study)
        return Corpora(study, artifact, Pool(artifact, corpus))

    return make


class Process:
    """`python ...` in a folder, with its output in files."""

    def __init__(self, folder: Path, *words: str, **environment: str) -> None:
        self.folder, self.err = folder, folder / "err.txt"
        with self.err.open("w") as err:
            self.popen = subprocess.Popen(
                [sys.executable, *words], cwd=folder, stdout=subprocess.DEVNULL, stderr=err,
                env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
            )  # fmt: skip

    def wait_for(self, pattern: str, num: int = 1) -> None:
        """Wait until there are files that match."""
        deadline = time.monotonic() + 120
        while len(list(self.folder.glob(pattern))) < num:
            assert self.popen.poll() is None, self.err.read_text()[-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def end(self) -> int:
        """Return the exit code, when there is one."""
        return self.popen.wait(timeout=300)

    def children(self) -> list[int]:
        """Its processes: the ranks of a torchrun."""
        path = Path(f"/proc/{self.popen.pid}/task/{self.popen.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    def said(self) -> list[str]:
        """The lines that ssae wrote, without progress."""
        return re.findall("^ssae: (.*)$", self.err.read_text(), re.MULTILINE)


@pytest.fixture(scope="session")
def start() -> Callable[..., Process]:
    """Return what starts `python <words>` in a folder."""
    return Process


@pytest.fixture(scope="session")
def train_command(neox_folder: Path, corpus_files: dict[str, str]) -> Callable[..., list[str]]:
    """Return a function that gives the words of `ssae train` for a small SAE, with overrides."""

    def command(**overrides: str) -> list[str]:
        values = {
            **{f"corpus.{split}": path for split, path in corpus_files.items()},
            "corpus.min_characters": "1", "language_model.name": str(neox_folder),
            "context_length": "32", "hookpoint": "gpt_neox.layers.1", "arm": "generalist",
            "generalist.budget_tokens": "2000", "generalist.num_tokens": str(64 * 4000),
            "training.batch_size_tokens": "64", "training.checkpoint_every_steps": "100",
            "sae.d_sae": "64", "sae.k": "4", "sae.k_aux": "8", "trainer": "cpu",
            **{key.replace("__", "."): value for key, value in overrides.items()},
        }  # fmt: skip
        return ["-m", "ssae", "train", "experiment=files", *(f"{k}={v}" for k, v in values.items())]

    return command


@pytest.fixture(scope="session")
def run_overrides(corpus_files: dict[str, str], neox_folder: Path) -> list[str]:
    """Overrides that make `ssae run` small."""
    return [
        "experiment=files", "corpus.min_characters=1", "corpus.subdomain_source=pool.3",
        *(f"corpus.{split}={path}" for split, path in corpus_files.items()),
        f"language_model.name={neox_folder}", "context_length=32", "trainer=cpu",
        "trainer.log_every_n_steps=1", "generalist.budget_tokens=1500",
        "generalist.num_tokens=2000",
        "budget_tokens=500", "specialist.num_tokens=1000", "frequency_tokens=1000",
        "training.batch_size_tokens=64", "training.dead_after_tokens=200", "sae.d_sae=64",
        "sae.k=4", "retriever.embedder.dim=4", "retriever.embedder.min_df=1",
        "num_bootstraps=20", "evaluation_tokens=400",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def torchrun() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs a script on several ranks of this machine."""

    def run(num_ranks: int, script: Path, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
             str(num_ranks), str(script), *words],
            env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300, capture_output=True, text=True,
            check=False,
        )  # fmt: skip

    return run


@pytest.fixture(scope="session")
def launch(
    tmp_path_factory: pytest.TempPathFactory,
    torchrun: Callable[..., subprocess.CompletedProcess[str]],
) -> Callable[..., None]:
    """Return a function that trains on several ranks of this machine; see rank.py."""

    def run(num_ranks: int, runs: list[tuple[Study, str, int | None]]) -> None:
        """Train arms of studies, each to its end or to the step at which it is to crash."""
        path = tmp_path_factory.mktemp("launch") / "runs.pickle"
        path.write_bytes(pickle.dumps(runs))
        done = torchrun(num_ranks, Path(__file__).with_name("rank.py"), str(path))
        assert done.returncode == 0, done.stderr[-5000:]

    return run


@pytest.fixture(scope="session")
def make_rows(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Rows]:
    """Return a function that tokenises texts."""
    folder = tmp_path_factory.mktemp("rows")

    def make(
        lm: LanguageModel, texts: list[str], context_length: int, bos: str = "row",
        packing: str = "packed", max_tokens: int | None = None,
    ) -> Rows:  # fmt: skip
        def write(partial: Path) -> dict[str, object]:
            datasets.Dataset.from_dict({"text": texts}).save_to_disk(partial / "documents")
            return {}

        study: Any = types.SimpleNamespace(
            language_model=lm, context_length=context_length, bos=bos, packing=packing,
            artifacts=folder,
        )  # fmt: skip
        documents = build(folder, "documents", {"texts": texts}, write)
        return Rows(tokenise(study, documents, max_tokens=max_tokens))

    return make


class Harvest(NamedTuple):
    """Tokens, and the activations that read them back from shards."""

    tokens: Tokens
    activations: Activations


@pytest.fixture
def write_tokens(tmp_path: Path) -> Callable[..., Harvest]:
    """Return a function that writes tokens to shards, in pieces of uneven size."""

    def write(tokens: Tokens, shard_tokens: int, vocab_size: int = 50) -> Harvest:
        n, d_in = tokens.activations.shape
        origins = torch.stack(tokens[1:], dim=1)

        def make(folder: Path) -> dict[str, object]:
            dtype = tokens.activations.dtype
            writer = ShardWriter(folder, "hookpoint", shard_tokens, d_in, dtype)
            size, sizes = 1, []
            for number, first in enumerate(range(0, n, shard_tokens)):
                sizes.append(min(shard_tokens, n - first))
                writer.start(number, first, sizes[-1])
                start = 0
                while start < sizes[-1]:
                    stop = min(start + size, sizes[-1])
                    piece = slice(first + start, first + stop)
                    writer.write(tokens.activations[piece], origins[piece], slice(start, stop))
                    start, size = stop, size % 7 + 3
                writer.finish()
            writer.wait()
            writer.close()
            counts = torch.bincount(tokens.token_ids, minlength=vocab_size)
            return write_statistics(folder, sizes, counts, dtype)

        artifact = build(tmp_path, "harvest", {"num_tokens": n, "shard_tokens": shard_tokens}, make)
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
