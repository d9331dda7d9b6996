"""`ssae <verb> [overrides]`: the only place that meets a DictConfig."""

import dataclasses
import difflib
import inspect
import logging
import netrc
import os
import re
import signal
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ssae import __version__
from ssae.artifact.full_disk import REMEDY, is_full_disk
from ssae.help import VERB_HELP, VERBS, help_text
from ssae.process.allocator import tune_allocator
from ssae.process.signals import Interrupted, end_with_launcher, interrupt_on_signals

HERE = Path(__file__).parent
# In a wheel conf/ lies inside the package, in a clone beside it.
CONF = HERE / "conf" if (HERE / "conf").is_dir() else HERE.parent / "conf"

# What a person can put right: one line. Anything else is a defect and keeps its traceback.
ERRORS = (HydraException, OmegaConfBaseException, ValueError, OSError)


def _wandb_offline() -> bool:
    """W&B without a key would stop and ask: run offline then (`wandb sync` uploads later)."""
    if os.environ.get("WANDB_MODE") or os.environ.get("WANDB_API_KEY"):
        return os.environ.get("WANDB_MODE", "online") != "online"
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is None
    except (OSError, netrc.NetrcParseError):
        return True


# At import, so that the worker processes of a sweep know them too.
tune_allocator()
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
    try:
        call_verb(cfg.verb, study_of(cfg))
    except ERRORS as error:
        # Before Hydra adds lines of its own; in a sweep it must see that the job failed.
        if HydraConfig.get().mode == RunMode.RUN:
            _fail(error)
        raise


def call_verb(verb: str, study: Any) -> None:
    """Run a verb and say what it made."""
    match verb:
        case "run":
            from ssae.run import run

            run(study)
        case "retrieve":
            from ssae.retrieve import retrieve_for

            print_made(retrieve_for(study, study.arm))
        case "harvest":
            from ssae.harvest import harvest_all_for

            for artifact in harvest_all_for(study, study.arm).values():
                print_made(artifact)
        case "train":
            from ssae.train import train

            print_made(train(study, study.arm))
        case "evaluate":
            from ssae.evaluate import evaluate

            print_made(evaluate(study))
        case "export":
            from ssae.export import export

            print_made(export(study))


def print_made(artifact: Any) -> None:
    """Say where the result lies and what its manifest says of it."""
    from ssae.process.ranks import rank

    if rank() > 0:
        return
    from ssae.report.table import spell

    print(artifact.path)  # noqa: T201
    for key, value in artifact.manifest.items():
        if key not in ("files", "libraries", "shard_sizes"):
            print(f"  {key}: {spell(value) if isinstance(value, float) else value}")  # noqa: T201


def main() -> None:
    """Entry point of `ssae`."""
    arguments = sys.argv[1:]
    verb = arguments[0] if arguments else "--help"
    if verb in ("-h", "--help", "help"):
        print(help_text(CONF))  # noqa: T201 - this is what was asked for
        return
    if verb == "--version":
        print(f"ssae {__version__}")  # noqa: T201
        return
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean `ssae {near[0]}`? " if near else ""
        _exit(f"{verb!r} is not a verb; {hint}Verbs: {', '.join(VERBS)}")
    if {"-h", "--help"} & set(arguments[1:]):
        print(f"ssae {verb}: {VERBS[verb]}\n\n{VERB_HELP[verb]}")  # noqa: T201
        return
    # argparse takes flags before overrides only; people write them anywhere.
    flags = [word for word in arguments[1:] if word.startswith("-") or re.fullmatch(r"\w+", word)]
    overrides = [word for word in arguments[1:] if word not in flags]
    sys.argv[1:] = [*flags, f"verb={verb}", *overrides]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors through to the lines below
    interrupt_on_signals()
    end_with_launcher()
    try:
        task()
    except KeyboardInterrupt as stop:
        _exit_interrupted(stop)
    except ERRORS as error:
        _fail(error)


def explain(error: BaseException) -> str:
    """Return one line with the rule, what was found and the remedy."""
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        key = re.search(r"full_key: ([\w.]+)", str(error))
        where = "" if isinstance(error.__cause__, ValueError) or not key else f"{key.group(1)}: "
        return where + explain(error.__cause__)
    text = str(error)
    if isinstance(error, OSError) and is_full_disk(error):
        where = f" ({error.filename})" if error.filename else ", that of artifacts= or of runs="
        return f"the disk is full{where}: {REMEDY}"
    key = re.search(r"(?:Could not override|Key) '([\w./@]+)'", text)
    if key and ("Could not override" in text or "not in struct" in text):
        known = [name for name in _known_keys() if name != key.group(1)]
        import lightning

        from ssae.training.trainer import REFUSED

        option = key.group(1).removeprefix("trainer.")
        if option != key.group(1) and option in REFUSED:
            return f"trainer.{option} cannot be had: {REFUSED[option]}"
        if option != key.group(1) and option in inspect.signature(lightning.Trainer).parameters:
            return f"trainer.{option} is not set so far: write +trainer.{option}=..."
        near = difflib.get_close_matches(key.group(1), known, n=3, cutoff=0.5)
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

    return sorted({name for name in groups + walk(cfg, "") if name})


def _quiet_libraries() -> None:
    """Leave progress and warnings to what a user can act on."""
    import datasets
    import lightning  # noqa: F401 - its import sets its loggers' level
    import transformers

    from ssae.process.ranks import rank

    if rank() > 0:
        logging.disable(logging.INFO)  # rank 0 tells the same story
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for name in ("httpx", "faiss.loader", "bm25s"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns at every matrix product
    # Batches come straight from mapped files: worker processes would only copy them.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # frozen
    # Batches are a function of the step: our loader resumes exactly (activation/datamodule.py).
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")


def _fail(error: Exception) -> NoReturn:
    if os.environ.get("SSAE_TRACEBACK"):  # for those who work on ssae itself
        raise error
    _exit(explain(error))


def _exit_interrupted(stop: KeyboardInterrupt) -> NoReturn:
    if not isinstance(stop, Interrupted):
        stop = Interrupted(signal.SIGINT)
    if os.environ.get("RANK", "0") != "0":  # rank 0 says it
        sys.exit(stop.status)
    _exit(str(stop), stop.status)


def _exit(message: str, status: int = 1) -> NoReturn:
    print(f"ssae: {message}", file=sys.stderr)  # noqa: T201
    sys.exit(status)
