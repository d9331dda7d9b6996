"""ssae run: every verb in order, then one directory to look at.

runs/<name>/<time>/
  report.html   metrics.json
  artifacts/    links: corpus, documents_<retriever>, one per arm, evaluate
  logs/         training curves of each arm
"""

import json
from pathlib import Path
from typing import Any

import datasets
from rich.console import Console

from ssae.artifact.store import Artifact
from ssae.evaluate import evaluate
from ssae.metric.formulas import fvu, l0
from ssae.metric.rows import row
from ssae.process.ranks import rank
from ssae.read_pool import read_corpus
from ssae.report.diagnose import print_diagnosis, write_diagnose_report
from ssae.report.html import write_report
from ssae.report.polish import print_polish
from ssae.report.shift import print_shift, write_shift_report
from ssae.report.terminal import print_table
from ssae.retrieve import ranking_quality, retrieve, retrieve_for
from ssae.retriever.base import Retriever
from ssae.sae.files import load_description
from ssae.study import Study
from ssae.train import train
from ssae.training.results import all_numbers, log_evaluation, log_page, log_shift

OWN = "retriever"
"""The key of `compare` that is the study's own."""
LEFT_OUT = {"seen_by_saes": "seen by SAEs", "repeats": "repeats", "empty": "empty"}
"""Why labelled documents are left out."""
NUM_SHOWN = 10
"""Retrieved documents in the report."""


def run(study: Study) -> None:
    """Train and evaluate every arm, compare retrievers, write the report, print the table."""
    study.language_model.check_causal()  # before the hours that training takes
    made = {arm: train(study, arm) for arm in study.arms}
    budget_tokens = study.arms[study.arm].budget_tokens
    for name, retriever in compared(study).items():
        made[f"documents_{name}"] = retrieve(study, retriever, budget_tokens)
    made["documents"] = retrieve_for(study, study.arm)
    made["evaluate"] = evaluate(study)
    made["corpus"] = read_corpus(study)
    if rank() == 0:
        report = write_run(study, made)
        Console().print(f"report: {report}", soft_wrap=True)


def compared(study: Study) -> dict[str, Retriever]:
    """Return {name: retriever} of `compare`; the study's own goes by what it is."""
    own = study.compare.get(OWN)
    named = {} if own is None else {own.name: own}
    return named | {k: v for k, v in study.compare.items() if k != OWN and k not in named}


def write_run(study: Study, made: dict[str, Artifact]) -> Path:
    """Write links, metrics.json and report.html into the run directory; return the report."""
    folder = study.run_dir
    link_artifacts(study, made)
    metrics = _read(made["evaluate"].path / "metrics.json")
    tables = _read(made["evaluate"].path / "tables.json")
    for name in compared(study):
        metrics += retrieval_rows(made[f"documents_{name}"], name)
    documents = datasets.Dataset.load_from_disk(made["documents"].path / "documents")
    shown = documents.select(range(min(NUM_SHOWN, len(documents))))
    tables["retrieved"] = shown.select_columns(["rank", "score", "source", "text"]).to_list()
    write_metrics(study, metrics)
    write_report(
        folder / "report.html",
        title=study.name,
        summary=_summary(study, made),
        metrics=metrics,
        tables=tables,
        config=composed_config(study),
    )
    log_evaluation(study, metrics, tables, folder / "report.html")
    print_table(metrics)
    return folder / "report.html"


def link_artifacts(study: Study, made: dict[str, Artifact]) -> None:
    """Make links to the artifacts of a run in its directory, artifacts/<name>."""
    folder = study.run_dir / "artifacts"
    folder.mkdir(parents=True, exist_ok=True)
    for name, artifact in made.items():
        link = folder / name
        link.unlink(missing_ok=True)
        link.symlink_to(artifact.path.resolve(), target_is_directory=True)


def composed_config(study: Study) -> str:
    """Return the config that Hydra wrote into the run directory, if it did."""
    config = study.run_dir / ".hydra" / "config.yaml"
    return config.read_text(encoding="utf-8") if config.exists() else ""


def write_evaluation(study: Study, evaluated: Artifact) -> None:
    """Write metrics.json of an evaluation into the run directory, and log it."""
    metrics, tables = (_read(evaluated.path / f"{name}.json") for name in ("metrics", "tables"))
    write_metrics(study, metrics)
    log_evaluation(study, metrics, tables, None)


def write_metrics(study: Study, metrics: list[dict[str, Any]]) -> None:
    """Write metrics.json into the run directory, where the summary of a sweep finds it."""
    if rank() == 0:
        text = json.dumps(metrics, indent=1, ensure_ascii=False, allow_nan=False)
        (study.run_dir / "metrics.json").write_text(text, encoding="utf-8")


def write_shift(study: Study, made: Artifact) -> None:
    """Write links, metrics.json, table.md and shift.html of `ssae shift`; print the table."""
    if rank() > 0:
        return
    link_artifacts(study, {"shift": made})
    metrics, settings = _read(made.path / "metrics.json"), study.shift
    write_metrics(study, metrics)
    groups = "; ".join(f"{name}: {count:,}" for name, count in made.manifest["groups"].items())
    left_out = ", ".join(
        f"{made.manifest[f'num_{reason}']:,} {words}" for reason, words in LEFT_OUT.items()
    )
    page = write_shift_report(
        study.run_dir,
        name=study.name,
        label=settings.label,
        spurious=settings.spurious,
        summary={
            "language model": study.language_model.name,
            "probe reads": study.language_model.resolve(study.hookpoint),
            "documents": groups,
            "left out": left_out,
            "seeds": ", ".join(map(str, settings.seeds)),
            "folds": str(settings.num_folds or "the data's own split"),
            "probe": repr(settings.probe),
        },
        metrics=metrics,
        config=composed_config(study),
    )
    print_shift(metrics, settings.label, settings.spurious)
    log_shift(study, metrics, page)
    Console().print(f"report: {page}", soft_wrap=True)


def write_diagnosis(study: Study, made: Artifact) -> None:
    """Write links, metrics.json and diagnose.html of `ssae diagnose`; print what was found."""
    if rank() > 0:
        return
    link_artifacts(study, {"diagnose": made})
    metrics, tables = (_read(made.path / f"{name}.json") for name in ("metrics", "tables"))
    write_metrics(study, metrics)
    page = write_diagnose_report(
        study.run_dir,
        name=study.name,
        summary={
            "language model": study.language_model.name,
            "hookpoint": study.language_model.resolve(study.hookpoint),
            "tokens": f"{study.evaluation_tokens:,} of each test split at most",
            **made.manifest["saes"],
        },
        metrics=metrics,
        tables=tables,
        config=composed_config(study),
    )
    print_diagnosis(metrics, tables)
    log_page(study, "diagnose", metrics, all_numbers(metrics), page)
    Console().print(f"report: {page}", soft_wrap=True)


def write_polish(study: Study, made: Artifact) -> None:
    """Write a link and metrics.json of `ssae polish`; print what it gave."""
    if rank() > 0:
        return
    link_artifacts(study, {"polish": made})
    metrics = _read(made.path / "metrics.json")
    write_metrics(study, metrics)
    print_polish(metrics, made.manifest)
    log_page(study, "polish", metrics, {f"polish/{m['name']}": m["value"] for m in metrics}, None)


def training_rows(trained: Artifact, batch_size_tokens: int) -> list[dict[str, Any]]:
    """Return the rows of metrics.json for one SAE: of the batch that was logged last."""
    manifest, num = trained.manifest, batch_size_tokens
    return [
        row(name, (manifest[name], None, None), manifest["arm"], "train", "all", num, formula)
        for name, formula in (("fvu", fvu), ("l0", l0))
        if name in manifest
    ]


def retrieval_rows(documents: Artifact, retriever: str) -> list[dict[str, Any]]:
    """Return the rows of metrics.json for one selection."""
    manifest = documents.manifest
    names = ("precision", "recall", "average_precision", "num_documents", "num_tokens")
    return [
        row(
            name,
            (manifest[name], None, None),
            None,
            "pool",
            "all",
            manifest["num_tokens"],
            ranking_quality,
        )
        | {"retriever": retriever}
        for name in names
        if name in manifest
    ]


def _summary(study: Study, made: dict[str, Artifact]) -> dict[str, str]:
    corpus = made["corpus"].manifest
    sae = load_description(made[study.arm].path)  # what was trained, whatever sae= says
    return {
        "language model": study.language_model.name,
        "hookpoint": study.language_model.resolve(study.hookpoint),
        "pool": f"{corpus['pool']['num_documents']:,} documents",
        "seeds": f"{corpus['seeds']['num_documents']:,} documents",
        "retrieved": f"{made['documents'].manifest['num_documents']:,} documents, "
        f"{made['documents'].manifest['num_tokens']:,} tokens "
        f"({made['documents'].manifest['retriever']})",
        "SAE": _spell_sae(sae["architecture"], sae["hyperparameters"]),
        "objective": repr(study.arms[study.arm].objective),
        "seed": str(study.seed),
    }


def _spell_sae(architecture: str, hyperparameters: dict[str, Any], **_: Any) -> str:
    parts = [
        f"{name} ({_spell_sae(**value)})" if isinstance(value, dict) else f"{name} {value}"
        for name, value in hyperparameters.items()  # an SAE may consist of SAEs
    ]
    return ", ".join([architecture, *parts])


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
