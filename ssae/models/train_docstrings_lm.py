"""Train `docstrings_lm`, the small GPT-NeoX that the embedded default studies.

    python -m ssae.models.train_docstrings_lm --minutes 80

Trains a BPE of 4096 tokens and a causal LM on the pool of corpus=docstrings (never on its test
splits), continues an interrupted run, and writes a plain Hugging Face directory with a model card.
The learning rate follows the clock, so the schedule is complete whatever the machine's speed.
"""

import argparse
import math
import shutil
from datetime import timedelta
from pathlib import Path

import hydra
import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.data import DataLoader, TensorDataset
from transformers import AutoModelForCausalLM, GPTNeoXConfig, PreTrainedTokenizerFast

from ssae.cli import CONF, study_of
from ssae.corpus.base import TESTS, load_split
from ssae.pool.pool import Pool
from ssae.read_pool import read_corpus

HERE = Path(__file__).parent
END = "<|endoftext|>"


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE; END separates documents."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=4096, special_tokens=[END], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END
    )


def packed_rows(tokenizer: PreTrainedTokenizerFast, texts: list[str], length: int) -> torch.Tensor:
    """Return (num_rows, length) token ids: documents in order, each after an END."""
    ids = [
        token for row in tokenizer(texts)["input_ids"] for token in (tokenizer.bos_token_id, *row)
    ]
    num_rows = len(ids) // length
    return torch.tensor(ids[: num_rows * length], dtype=torch.int32).view(num_rows, length)


class LitLM(L.LightningModule):
    """Causal LM under AdamW; warm-up, then cosine to a tenth, both in wall-clock time."""

    def __init__(self, model: torch.nn.Module, lr: float, timer: Timer, seconds: float) -> None:
        super().__init__()
        self.model, self.lr, self.timer, self.seconds = model, lr, timer, seconds

    def training_step(self, batch: list[torch.Tensor], step: int) -> torch.Tensor:
        """Next-token cross-entropy."""
        done = min(1.0, self.timer.time_elapsed("train") / self.seconds)
        decay = 0.55 + 0.45 * math.cos(math.pi * done)
        for group in self.optimizers().param_groups:  # pyright: ignore
            group["lr"] = self.lr * min(1.0, (self.global_step + 1) / 200) * decay
        ids = batch[0].long()
        loss = self.model(input_ids=ids, labels=ids).loss
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW without weight decay on vectors (norms and biases)."""
        matrices = [p for p in self.parameters() if p.ndim > 1]
        vectors = [p for p in self.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": 0.1},
                  {"params": vectors, "weight_decay": 0.0}]  # fmt: skip
        return torch.optim.AdamW(groups, lr=self.lr, betas=(0.9, 0.95))


@torch.no_grad()
def perplexity(model: torch.nn.Module, rows: torch.Tensor) -> float:
    """Exp of the mean next-token cross-entropy over packed rows."""
    losses = [model(input_ids=batch.long(), labels=batch.long()).loss for batch in rows.split(16)]
    return math.exp(torch.stack(losses).mean().item())


CARD = """\
# docstrings_lm

The language model of ssae's embedded default: GPT-NeoX, {parameters:,} parameters, {layers} layers
of width {width}, context {context}, byte-level BPE of {vocabulary} tokens, tied embeddings. Weights
are stored in float16 and load as float32.

| | |
|---|---|
| training text | pool of `corpus=docstrings`: {documents:,} docstrings, {pool_tokens:,} tokens |
| tokens seen | {seen:,} ({epochs:.1f} epochs), {minutes:g} minutes, {threads} CPU cores, bf16 |
| held-out perplexity, general_test | {general:.2f} |
| held-out perplexity, subdomain_test (scipy.stats) | {subdomain:.2f} |

Made by `python -m ssae.models.train_docstrings_lm --minutes {minutes:g}`; it has never seen the two
test splits or the seeds of that corpus. Hookpoints: `gpt_neox.layers.0` to
`gpt_neox.layers.{last}`. Made for testing interpretability tools: it writes plausible docstrings
and knows nothing.
"""


def main() -> None:
    """Train, evaluate, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=80)
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"))
    parser.add_argument("--work", type=Path, default=Path("runs/docstrings_lm"))
    parser.add_argument("--output", type=Path, default=HERE / "docstrings_lm")
    args = parser.parse_args()

    L.seed_everything(0)
    words = [f"artifacts={args.artifacts}", f"run_dir={args.work}", "arm=generalist"]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        study = study_of(hydra.compose("config", words))
    corpus = read_corpus(study)
    texts = list(Pool(corpus, study.corpus).texts())
    args.work.mkdir(parents=True, exist_ok=True)
    if not (args.work / "tokenizer").exists():
        train_tokenizer(texts).save_pretrained(args.work / "tokenizer")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(args.work / "tokenizer")
    context, batch_size = 256, 32
    rows = packed_rows(tokenizer, texts, context)
    print(f"{rows.numel():,} tokens in the pool")

    config = GPTNeoXConfig(
        vocab_size=len(tokenizer), hidden_size=192, num_hidden_layers=4, num_attention_heads=6,
        intermediate_size=768, max_position_embeddings=512, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    timer = Timer(timedelta(minutes=args.minutes))
    lit = LitLM(model, lr=2e-3, timer=timer, seconds=60 * args.minutes)
    checkpoints = ModelCheckpoint(
        args.work, save_last=True, train_time_interval=timedelta(minutes=4), save_top_k=0
    )
    trainer = L.Trainer(
        max_epochs=-1, precision="bf16-mixed", gradient_clip_val=1.0, logger=False,
        callbacks=[timer, checkpoints], default_root_dir=args.work, log_every_n_steps=1,
    )  # fmt: skip
    loader = DataLoader(TensorDataset(rows), batch_size, shuffle=True, drop_last=True)
    resume = args.work / "last.ckpt"
    trainer.fit(lit, loader, ckpt_path=resume if resume.exists() else None, weights_only=True)

    model.eval().half().float()  # evaluate what is stored
    held_out = {
        split.removesuffix("_test"): perplexity(
            model, packed_rows(tokenizer, load_split(corpus, split)["text"][:], context)
        )
        for split in TESTS
    }
    seen = trainer.global_step * batch_size * context
    shutil.rmtree(args.output, ignore_errors=True)
    tokenizer.save_pretrained(args.output)
    model.half().save_pretrained(args.output)
    config.dtype = "float32"  # from_pretrained then upcasts by itself
    config.architectures = [type(model).__name__]
    config.save_pretrained(args.output)
    card = CARD.format(
        parameters=sum(p.numel() for p in model.parameters()), layers=config.num_hidden_layers,
        width=config.hidden_size, context=context, vocabulary=config.vocab_size,
        documents=len(texts), pool_tokens=rows.numel(), seen=seen, epochs=seen / rows.numel(),
        minutes=args.minutes, threads=torch.get_num_threads(), last=config.num_hidden_layers - 1,
        **held_out,
    )  # fmt: skip
    (args.output / "README.md").write_text(card, encoding="utf-8")
    print(card)


if __name__ == "__main__":
    main()
