"""Text to trained SAE, once, in a process of its own: `e2e` starts one after the other.

python -m ssae.bench.contenders NAME FOLDER OVERRIDES...    prints the seconds as JSON

FOLDER holds the artifacts of `e2e`: documents and their tokens. What every contender has before its
clock starts: the tokens, cut into the same rows, and the language model in memory.
"""

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ssae.process.allocator import tune_allocator

tune_allocator()

import datasets  # noqa: E402
import hydra  # noqa: E402

from ssae.activation.rows import Rows  # noqa: E402
from ssae.cli import CONF, study_of  # noqa: E402
from ssae.retrieve import retrieve_for  # noqa: E402
from ssae.study import Study  # noqa: E402
from ssae.tokenise import tokenise  # noqa: E402
from ssae.train import train  # noqa: E402

ARM = "generalist"
DEFAULTS = (
    "sae.d_sae=4096", "sae.k=32", "training.batch_size_tokens=4096", "context_length=128",
    "generalist.num_tokens=400_000", "generalist.budget_tokens=400_000", "logger=none",
    "+trainer.enable_progress_bar=false", "harvest_batch_tokens=4096", f"arm={ARM}",
)  # fmt: skip
"""Of the study that all contenders run; `e2e` appends its own overrides."""


def compose(folder: Path, overrides: list[str]) -> Study:
    """Return the study of DEFAULTS and overrides, with its artifacts in the folder."""
    here = [f"artifacts={folder / 'artifacts'}", f"run_dir={folder / 'run'}", "verb=train"]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return study_of(hydra.compose("config", [*DEFAULTS, *overrides, *here]))


def tokens_of(study: Study) -> Rows:
    """Return the tokenised text of the arm; made where it is not there yet."""
    return Rows(tokenise(study, retrieve_for(study, ARM), "documents", None))


def ssae(study: Study, rows: Rows) -> Callable[[], Any]:
    """Train as `ssae train` does, from nothing but the tokens."""
    for verb in ("harvest", "train"):
        shutil.rmtree(study.artifacts / verb, ignore_errors=True)
    return lambda: train(study, ARM)


def saelens(study: Study, rows: Rows) -> Callable[[], Any]:
    """Train with SAELens' runner; its loggers, checkpoints and evaluations off."""
    import sae_lens

    arm, sae, lm = study.arms[ARM], study.sae.keywords, study.language_model
    batch = study.training.batch_size_tokens
    config = sae_lens.LanguageModelSAERunnerConfig(
        sae=sae_lens.TopKTrainingSAEConfig(
            d_in=_d_in(study), d_sae=sae["d_sae"], k=sae["k"], device="cpu"
        ),
        model_name=lm.name,
        model_class_name="AutoModelForCausalLM",
        hook_name=lm.resolve(study.hookpoint),
        dataset_path="given",
        streaming=False,
        context_size=study.context_length,
        n_batches_in_buffer=128,
        train_batch_size_tokens=batch,
        training_tokens=arm.num_tokens,
        n_eval_batches=0,
        logger=sae_lens.LoggingConfig(log_to_wandb=False),
        checkpoint_path=None,
        output_path=None,
        verbose=False,
        device="cpu",
    )
    given = datasets.Dataset.from_dict({"input_ids": _full_rows(study, rows)})
    runner = sae_lens.LanguageModelSAETrainingRunner(config, override_dataset=given)
    return runner.run


def sparsify(study: Study, rows: Rows) -> Callable[[], Any]:
    """Train with sparsify's trainer, which runs the whole model; its logger off."""
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
    from sparsify import SparseCoderConfig, TrainConfig, Trainer

    arm, sae, lm = study.arms[ARM], study.sae.keywords, study.language_model
    config = TrainConfig(
        SparseCoderConfig(num_latents=sae["d_sae"], k=sae["k"]),
        batch_size=study.training.batch_size_tokens // study.context_length,
        # Its names are relative to the model without its head.
        hookpoints=[lm.resolve(study.hookpoint).partition(".")[2]],
        log_to_wandb=False,
        optimizer="adam",
        save_every=10**9,
        save_dir=tempfile.mkdtemp(),
    )
    needed = _full_rows(study, rows)[: arm.num_tokens // study.context_length]
    given = datasets.Dataset.from_dict({"input_ids": needed}).with_format("torch")
    return Trainer(config, given, lm.model).fit


def _full_rows(study: Study, rows: Rows) -> list[list[int]]:
    full = [i for i in range(rows.num_rows) if rows.lengths[i] == study.context_length]
    return rows.batch(full).input_ids.tolist()  # pyright: ignore[reportArgumentType]


def _d_in(study: Study) -> int:
    return study.language_model.model.config.hidden_size  # pyright: ignore


class Contender(NamedTuple):
    """Who runs."""

    prepare: Callable[[Study, Rows], Callable[[], Any]]
    text_share: float
    """Tokens of text it gets, over tokens trained on."""
    overrides: tuple[str, ...] = ()
    """Of its own."""


CONTENDERS = {
    "ssae": Contender(ssae, 1),
    "ssae, activation=stream": Contender(ssae, 1, ("activation=stream",)),
    "saelens": Contender(saelens, 1.35),  # more than it trains on, to fill its buffer
    "sparsify": Contender(sparsify, 1.05),  # whole rows
}


def study_for(name: str, folder: Path, overrides: list[str]) -> Study:
    """Return the study that a contender runs."""
    contender = CONTENDERS[name]
    study = compose(folder, [*overrides, *contender.overrides])
    arm = study.arms[ARM]
    arm = dataclasses.replace(arm, budget_tokens=round(contender.text_share * arm.num_tokens))
    return dataclasses.replace(study, arms=study.arms | {ARM: arm})


def main() -> None:
    """Run one contender."""
    name, folder, *overrides = sys.argv[1:]
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    study = study_for(name, Path(folder), overrides)
    assert study.language_model.model is not None  # in memory before the clock starts
    with contextlib.redirect_stdout(sys.stderr):  # a peer greets
        fit = CONTENDERS[name].prepare(study, tokens_of(study))
        start = time.perf_counter()
        fit()
        seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds}))  # noqa: T201


if __name__ == "__main__":
    main()
