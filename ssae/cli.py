"""`ssae <verb> [overrides]`: the only place that meets a DictConfig."""

import dataclasses
import difflib
import os
import re
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ssae import __version__
from ssae.config import CONF, register_resolvers
from ssae.explain import explain
from ssae.help import OWN_EXPERIMENT, VERB_HELP, VERBS, help_text
from ssae.process.allocator import tune_allocator
from ssae.process.signals import (
    Interrupted,
    end_with_launcher,
    interrupt_on_signals,
    launched_rank,
    pass_on,
)
from ssae.sweep.callback import Watch

# What a person can put right: one line. Anything else is a defect and keeps its traceback.
ERRORS = (HydraException, OmegaConfBaseException, ValueError, OSError)


# At import, so that the worker processes of a sweep know them too.
tune_allocator()
register_resolvers()


def study_of(cfg: DictConfig) -> Any:
    """Return the `Study` a composed config describes."""
    from ssae.study import Study

    values: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    names = [field.name for field in dataclasses.fields(Study)]
    missing = [name for name in names if name not in values]
    if missing:
        raise ValueError(f"{missing[0]} was taken out of the config; set {missing[0]}=...")
    seed = values["seed"]  # of many parts, each of which would name itself
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"seed must be a whole number, got {seed!r}; set seed=<a whole number>")
    known = {name: values[name] for name in names}
    try:
        return Study(**hydra.utils.instantiate(known, _convert_="all"))
    except TypeError as error:  # from a comparison in a constructor
        raise ValueError(
            f"a value has the wrong type: {error}; see `ssae run --cfg job`"
        ) from error


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def task(cfg: DictConfig) -> float | None:
    """Run one verb for one composed config: a run, or one job of a sweep.

    Returns:
        what a sweeper minimises: the number that `minimise` names; None of a run.
    """
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        from ssae.sweep.outcome import recorded

        return recorded(cfg, lambda: _run_verb(cfg))
    try:
        _run_verb(cfg)
    except ERRORS as error:
        _fail(error)  # before Hydra adds lines of its own


def _run_verb(cfg: DictConfig) -> None:
    from ssae.process.quiet import quiet_libraries

    quiet_libraries()
    try:
        call_verb(cfg.verb, study_of(cfg))
    except Interrupted as stop:
        pass_on(stop)
        raise


def call_verb(verb: str, study: Any) -> None:
    """Run a verb and say what it made."""
    match verb:
        case "run":
            from ssae.run import run

            run(study)
        case "retrieve":
            from ssae.retrieve import retrieve_for, show

            artifact = retrieve_for(study, study.arm)
            show(study, artifact)
            print_made(artifact)
        case "harvest":
            from ssae.harvest import harvest_all_for

            for artifact in harvest_all_for(study, study.arm).values():
                print_made(artifact)
        case "train":
            from ssae.run import training_rows, write_metrics
            from ssae.train import train

            artifact = train(study, study.arm)
            write_metrics(study, training_rows(artifact, study.training.batch_size_tokens))
            print_made(artifact)
        case "evaluate":
            from ssae.evaluate import evaluate
            from ssae.run import write_evaluation

            artifact = evaluate(study)
            write_evaluation(study, artifact)
            print_made(artifact)
        case "shift":
            from ssae.run import write_shift
            from ssae.shift import shift

            artifact = shift(study)
            write_shift(study, artifact)
            print_made(artifact)
        case "diagnose":
            from ssae.diagnose import diagnose
            from ssae.run import write_diagnosis

            artifact = diagnose(study)
            write_diagnosis(study, artifact)
            print_made(artifact)
        case "polish":
            from ssae.polish import polish
            from ssae.run import write_polish

            artifact = polish(study)
            write_polish(study, artifact)
            print_made(artifact)
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
    if verb == "report":  # reads what runs left: no study, no folder of its own
        _report(arguments[1:])
        return
    # argparse takes flags before overrides only; people write them anywhere.
    flags = [word for word in arguments[1:] if word.startswith("-") or re.fullmatch(r"\w+", word)]
    overrides = [word for word in arguments[1:] if word not in flags]
    if verb in OWN_EXPERIMENT and not any(word.startswith("experiment=") for word in overrides):
        overrides = [f"experiment={OWN_EXPERIMENT[verb]}", *overrides]
    sys.argv[1:] = [*flags, f"verb={verb}", *overrides]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors through to the lines below
    interrupt_on_signals()
    end_with_launcher()
    try:
        try:
            task()
        finally:
            _summarise()
    except KeyboardInterrupt as stop:
        _exit_interrupted(stop)
    except ERRORS as error:
        _fail(error)
    except Exception as error:
        # A job that SLURM or the machine ended; the launcher has nothing else to say of it.
        if not type(error).__module__.startswith(("submitit", "joblib")):
            raise
        _fail(error)


def _report(words: Sequence[str]) -> None:
    from ssae.sweep.report import report

    try:
        report(words)
    except ERRORS as error:
        _fail(error)


def _summarise() -> None:
    folder, Watch.folder = Watch.folder, None  # another `main` of this process is another command
    if folder is None:  # no sweep
        return
    from ssae.sweep.summary import summarise

    Watch.stop()
    summarise(folder, Watch.num_jobs)


def _fail(error: Exception) -> NoReturn:
    if os.environ.get("SSAE_TRACEBACK"):  # for those who work on ssae itself
        raise error
    _exit(explain(error, sys.argv[1:]))


def _exit_interrupted(stop: KeyboardInterrupt) -> NoReturn:
    if not isinstance(stop, Interrupted):
        stop = Interrupted(signal.SIGINT)
    if launched_rank() > 0:  # rank 0 says it
        sys.exit(stop.status)
    _exit(str(stop), stop.status)


def _exit(message: str, status: int = 1) -> NoReturn:
    print(f"ssae: {message}", file=sys.stderr)  # noqa: T201
    sys.exit(status)
