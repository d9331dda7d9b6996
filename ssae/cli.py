"""`ssae <verb> [overrides]`: the only place that meets a DictConfig."""

import dataclasses
import difflib
import logging
import netrc
import os
import re
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

HERE = Path(__file__).parent
# In a wheel conf/ lies inside the package, in a clone beside it.
CONF = HERE / "conf" if (HERE / "conf").is_dir() else HERE.parent / "conf"

VERBS = {
    "run": "everything in order: retrieve, harvest, train every arm, evaluate, report",
    "retrieve": "rank the pool by closeness to the seeds, keep a budget of tokens",
    "harvest": "store the language model's activations on an arm's documents",
    "train": "train the SAE of one arm (arm=specialist), and what it starts from",
    "evaluate": "measure every arm on the subdomain's and the general test split",
}

HELP = """\
ssae: specialised sparse autoencoders - find the rare concepts of a subdomain in a language model

usage: ssae <verb> [key=value ...]

{verbs}

All verbs read one composed config; an override has one spelling everywhere:
  ssae run                                    the embedded study: no account, no GPU, no download
  ssae run experiment=files corpus.pool=pool.jsonl corpus.seeds=seeds.jsonl language_model.name=DIR
  ssae train arm=specialist objective=term objective.tilt=5 sae.k=32
  ssae run -m seed=0,1,2                      a sweep (add hydra/launcher=joblib to run in parallel)

Groups (group=choice):
{groups}

  ssae <verb> --cfg job                       print the composed config with every key
  ssae <verb> --help                          what a verb reads, writes and is steered by
Results: artifacts/<verb>/<hash>, reused when nothing that decides them changed;
runs/<name>/<time>: logs, the composed config and, from `ssae run`, the report.
"""

VERB_HELP = {
    "run": """\
Trains four SAEs and compares them:
  generalist      on random documents of the pool (or loaded: arms.generalist.init_from=DIR
                  arms.generalist.num_tokens=0)
  control         the generalist, trained on with random documents: what more training alone gives
  specialist_erm  the generalist, trained on with the retrieved documents, plain mean of the losses
  specialist      the same with objective= (default: term, tilted risk)
writes  runs/<name>/<time>/{report.html, metrics.json, artifacts/}
steered by  budget_tokens, generalist.*, specialist.*, sae.*, objective.*, training.*, seed""",
    "retrieve": """\
reads   corpus.pool, corpus.seeds
writes  artifacts/retrieve/<hash>/documents   datasets folder: text, source, score, rank, retriever
steered by  retriever=dense|bm25|random, retriever.*, budget_tokens, arm=<whose documents>""",
    "harvest": """\
reads   the documents of arm=
writes  artifacts/harvest/<hash>/shard_*.safetensors   activations, token_ids, ...
steered by  language_model.*, hookpoint, context_length, bos, harvest_batch_tokens, shard_tokens""",
    "train": """\
reads   the harvest of arm=, and the SAE it starts from (arms.<arm>.init_from)
writes  artifacts/train/<hash>/{sae.safetensors, sae.json}; load with ssae.load(folder)
steered by  arm, sae.*, objective.*, training.*, trainer=auto|cpu, logger=csv|wandb|none, seed
An interrupted run continues from its last checkpoint when the same command is given again.
Several devices: torchrun --nproc-per-node 2 -m ssae train trainer.devices=2 [overrides]""",
    "evaluate": """\
reads   every arm's SAE, both test splits
writes  artifacts/evaluate/<hash>/{metrics.json, tables.json}
steered by  num_bootstraps, evaluation_batch_tokens""",
}


def _wandb_offline() -> bool:
    """W&B without a key would stop and ask: run offline then (`wandb sync` uploads later)."""
    if os.environ.get("WANDB_MODE") or os.environ.get("WANDB_API_KEY"):
        return os.environ.get("WANDB_MODE", "online") != "online"
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is None
    except (OSError, netrc.NetrcParseError):
        return True


# At import, so that the worker processes of a sweep know them too.
OmegaConf.register_new_resolver("bundled", lambda name: str(HERE / "models" / name))
OmegaConf.register_new_resolver("wandb_offline", _wandb_offline)


def study_of(cfg: DictConfig) -> Any:
    """Return the `Study` a composed config describes."""
    from ssae.study import Study

    values: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    known = {field.name: values[field.name] for field in dataclasses.fields(Study)}
    try:
        return Study(**hydra.utils.instantiate(known, _convert_="all"))
    except TypeError as error:  # from a comparison in a constructor
        raise ValueError(
            f"a value has the wrong type: {error}; see `ssae run --cfg job`"
        ) from error


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def task(cfg: DictConfig) -> None:
    """Run one verb for one composed config (one job of a sweep)."""
    _quiet_libraries()
    study = study_of(cfg)
    match cfg.verb:
        case "run":
            from ssae.run import run

            run(study)
        case "retrieve":
            from ssae.retrieve import retrieve_for

            print_made(retrieve_for(study, study.arm))
        case "harvest":
            from ssae.harvest import harvest_for

            print_made(harvest_for(study, study.arm))
        case "train":
            from ssae.train import train

            print_made(train(study, study.arm))
        case "evaluate":
            from ssae.evaluate import evaluate

            print_made(evaluate(study))


def print_made(artifact: Any) -> None:
    """Say where the result lies and what its manifest says of it."""
    print(artifact.path)  # noqa: T201
    for key, value in artifact.manifest.items():
        if key not in ("files", "libraries"):
            print(f"  {key}: {value}")  # noqa: T201


def main() -> None:
    """Entry point of `ssae`."""
    arguments = sys.argv[1:]
    verb = arguments[0] if arguments else "--help"
    if verb in ("-h", "--help", "help"):
        print(_help())  # noqa: T201 - this is what was asked for
        return
    # Ranks that Lightning or SLURM restart with our rewritten arguments name the verb as verb=.
    named = re.fullmatch(r"verb=(\w+)", verb)
    verb = named.group(1) if named else verb
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        _fail(f"{verb!r} is not a verb; " + (f"did you mean `ssae {near[0]}`? " if near else "")
              + f"Verbs: {', '.join(VERBS)}")  # fmt: skip
    if {"-h", "--help"} & set(arguments[1:]):
        print(f"ssae {verb}: {VERBS[verb]}\n\n{VERB_HELP[verb]}")  # noqa: T201
        return
    # argparse takes flags before overrides only; people write them anywhere.
    flags = [word for word in arguments[1:] if word.startswith("-") or re.fullmatch(r"\w+", word)]
    overrides = [word for word in arguments[1:] if word not in flags]
    sys.argv[1:] = [*flags, f"verb={verb}", *overrides]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors through to the lines below
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        task()
    except KeyboardInterrupt:
        _fail("interrupted; give the same command again to continue", status=130)
    except (HydraException, OmegaConfBaseException, ValueError, OSError) as error:
        if os.environ.get("SSAE_TRACEBACK"):
            raise
        _fail(explain(error))


def explain(error: BaseException) -> str:
    """Return one line with the rule, what was found and the remedy."""
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        key = re.search(r"full_key: ([\w.]+)", str(error))
        where = "" if isinstance(error.__cause__, ValueError) or not key else f"{key.group(1)}: "
        return where + explain(error.__cause__)
    text = str(error)
    key = re.search(r"(?:Could not override|Key) '([\w./@]+)'", text)
    if key and ("Could not override" in text or "not in struct" in text):
        near = difflib.get_close_matches(key.group(1), _known_keys(), n=3, cutoff=0.5)
        remedy = f"did you mean {' or '.join(near)}?" if near else "see `ssae run --cfg job`"
        return f"unknown override {key.group(1)!r}: {remedy}"
    missing = re.search(r"Missing mandatory value: [\s\S]*full_key: ([\w.]+)", text)
    if missing:
        return f"{missing.group(1)} has no value: set {missing.group(1)}=..."
    group = re.search(
        r"Could not find '([^']+)'[\s\S]*Available options in '[^']+':([\s\S]*?)\n\S", text
    )
    if group:
        choices = ", ".join(group.group(2).split())
        return f"no config {group.group(1)!r}; choices: {choices}"
    return " ".join(text.split())


def _known_keys() -> list[str]:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("config")
    groups = [str(path.relative_to(CONF)) for path in CONF.iterdir() if path.is_dir()]

    def walk(node: Any, prefix: str) -> list[str]:
        if not isinstance(node, DictConfig):
            return [prefix]
        keys = [walk(node._get_node(key), f"{prefix}.{key}".strip(".")) for key in node]
        return [prefix, *(name for names in keys for name in names)]

    return [name for name in groups + walk(cfg, "") if name]


def _help() -> str:
    verbs = "\n".join(f"  {name:<10} {text}" for name, text in VERBS.items())
    groups = "\n".join(
        f"  {folder.name:<15} {', '.join(sorted(path.stem for path in folder.glob('*.yaml')))}"
        for folder in sorted(CONF.iterdir())
        if folder.is_dir()
    )
    return HELP.format(verbs=verbs, groups=groups)


def _quiet_libraries() -> None:
    """Leave progress and warnings to what a user can act on."""
    import datasets
    import lightning  # noqa: F401 - its import sets its loggers' level
    import transformers

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for name in ("httpx", "faiss.loader", "bm25s"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Batches come straight from mapped files: worker processes would only copy them.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")


def _fail(message: str, status: int = 1) -> None:
    print(f"ssae: {message}", file=sys.stderr)  # noqa: T201
    sys.exit(status)
