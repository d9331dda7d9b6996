"""What `ssae --help` and `ssae <verb> --help` say."""

from pathlib import Path

VERBS = {
    "run": "everything in order: retrieve, harvest, train every arm, evaluate, report",
    "retrieve": "rank the pool by closeness to the seeds, keep a budget of tokens",
    "harvest": "store the language model's activations on an arm's documents",
    "train": "train the SAE of one arm (arm=specialist), and what it starts from",
    "evaluate": "measure every arm on the subdomain's and the general test split",
    "shift": "take a spurious attribute (gender) out of a classifier by ablating its latents",
    "diagnose": "how far SAEs are from what any L1 optimum must satisfy, and what that explains",
    "polish": "lower the objective of a trained SAE in a few steps, kept only if it helps",
    "export": "write an arm's SAE, or any saved one, in the format of another library",
    "report": "draw the summary and the Pareto curves of finished runs and sweeps again",
}

OWN_EXPERIMENT = {"shift": "synthetic_bios"}
"""Verbs whose embedded study is another one than the default."""

HELP = """\
ssae: specialised sparse autoencoders - find the rare concepts of a subdomain in a language model

usage: ssae <verb> [key=value ...]

{verbs}

All verbs read one composed config; an override has one spelling everywhere:
  ssae run                                    the embedded study: no account, no GPU, no download
  ssae run experiment=files corpus.pool=pool.jsonl corpus.seeds=seeds.jsonl language_model.name=DIR
  ssae train arm=specialist objective=term objective.tilt=-2 sae.k=32
  ssae run -m seed=0,1,2                      a sweep (hydra/launcher=joblib or slurm: in parallel)
  ssae run -m sae.k=8,16,32 seed=0,1,2        Pareto curves: its summary.html
  ssae shift                                  Bias in Bios on synthetic biographies
  ssae report runs/docstrings/mine            the same again, nothing is trained

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
writes  artifacts/retrieve/<hash>/documents        datasets folder: text, source, hash, score, rank,
          query (number of the closest seed), retriever, num_tokens, num_characters, document
        artifacts/retrieve/<hash>/retrieval.html   scores, sources, seeds, a map, the border
steered by  retriever=dense|bm25|hybrid|hybrid_minilm|dense_tracin|bm25_tracin|random, retriever.*,
  retriever/embedder=tfidf|minilm|subject|hf|..., selection.*, budget_tokens, arm=<whose documents>
An interrupted pass over the pool continues when the same command is given again.
Several devices: torchrun --nproc-per-node 2 -m ssae retrieve trainer.devices=2 [overrides]""",
    "harvest": """\
reads   the documents of arm=
writes  artifacts/harvest/<hash>/shard_*.safetensors   activations; token, document, position
steered by  language_model.*, hookpoint, hookpoints=[more of them], context_length, bos, packing,
  harvest_batch_tokens, shard_tokens; with activation=stream only a sample is harvested
An interrupted run continues at the first missing shard when the same command is given again.
Several devices: torchrun --nproc-per-node 2 -m ssae harvest trainer.devices=2 [overrides]""",
    "train": """\
reads   the harvest of arm=, and the SAE it starts from (arms.<arm>.init_from, .start)
writes  artifacts/train/<hash>/{sae.safetensors, sae.json}; load with ssae.load(folder)
steered by  arm, activation=shards|stream, sae.*, objective.*, training.*, trainer=auto|cpu|fsdp,
  logger=csv|wandb|none, seed
activation=stream: the language model makes the activations while the SAE trains, none on disk
An interrupted run continues from its last checkpoint when the same command is given again.
SIGTERM, SIGINT (Ctrl-C) and SIGUSR1 end it after the current step, with a checkpoint; exit code
128 + signal (0 with SSAE_REQUEUE=1 in the environment), after SIGUSR1 75: start it again.
Several devices: torchrun --nproc-per-node 2 -m ssae train trainer.devices=2 [overrides], or
slurm/submit train --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 -- [overrides]
trainer=fsdp: they share an SAE that is too wide for one of them""",
    "evaluate": """\
reads   every arm's SAE, both test splits
writes  artifacts/evaluate/<hash>/{metrics.json, tables.json}
steered by  evaluation_tokens, frequency_tokens, num_bootstraps, arm=<whose latents to compare>""",
    "shift": """\
reads   labelled documents (labelled=synthetic|files|bias_in_bios): text, shift.label,
        shift.spurious; generalist and specialist, trained for each of shift.seeds, shift.widths
writes  runs/<name>/<time>/{shift.html, table.md, metrics.json, artifacts/shift/}
        artifacts/shift/<hash>/candidates.html and .yaml: what latents read, for a person to judge
continue with your own judgement: edit candidates.yaml, then the same with shift.candidates=FILE
steered by  shift.*, labelled.*, shift/probe=logistic|published, hookpoint (where the probe reads),
  shift.hookpoints=[where SAEs read], sae.*, generalist.*, specialist.*, budget_tokens
without experiment=, it takes experiment=synthetic_bios: no account, no download, two minutes
  ssae shift experiment=bias_in_bios          LabHC/bias_in_bios and Pythia-70M, from the hub
  ssae shift experiment=labelled_files corpus.pool=POOL labelled.path=FILE language_model.name=DIR
a folder of SAEs of all layers: 'arms.generalist.init_from="saes/{hookpoint}"' shift.widths=[1]""",
    "diagnose": """\
reads   every arm's SAE (diagnose.arms), others in any format (diagnose.saes=[FOLDER,...]), both
        test splits
writes  runs/<name>/<time>/{diagnose.html, metrics.json, artifacts/diagnose/}
steered by  diagnose.*, evaluation_tokens, num_bootstraps
SAEs of several widths: the page also shows how latents split from one to the next
the theory on data whose concepts are known: python -m ssae.theory""",
    "polish": """\
reads   the SAE of arm=, or polish.sae=<folder in any format, or id on the hub>; the harvest of arm=
writes  artifacts/polish/<hash>/{sae.safetensors, sae.json, metrics.json}; ssae.load(folder)
Rounds of best codes for the directions, directions for these codes, an encoder for both. The best
round on half of the held-out documents is kept if the other half confirms it, else the old SAE.
steered by  arm, polish.*, num_bootstraps, seed""",
    "export": """\
reads   the SAE of arm=, or export.sae=<folder in any format, or id on the hub>
writes  export.path=<folder>, loads it again and compares both on random input
  saelens              cfg.json, sae_weights.safetensors    every architecture but residual
  dictionary_learning  config.json, ae.pt                   every architecture but residual
  gemma_scope          params.npz                           jumprelu, batchtopk, matryoshka
  sparsify             cfg.json, sae.safetensors            topk
  ssae                 sae.json, sae.safetensors            every architecture
steered by  arm, export.sae, export.format, export.path; a folder is replaced only if it holds an
earlier export""",
    "report": """\
usage   ssae report <folder> [<folder> ...] [out=FILE.html] [logger=wandb]
reads   metrics.json and overrides of the runs, jobs and sweeps in the folders; trains nothing
writes  summary.html   settings with means over seeds; where sae.k, sae.l1_coefficient or
          sae.l0_coefficient differs, perplexity and tail_recall of every arm against l0
        summary.csv    a row per job             arms.csv   a row per job and arm
  into the folder, of several folders into the one you are in; or out=
steered by  out=, logger=wandb (a table of all jobs and arms, and the figures), logger.*""",
}


def help_text(conf: Path) -> str:
    """Return the text of `ssae --help`; the groups are those found in `conf`."""
    verbs = "\n".join(f"  {name:<10} {text}" for name, text in VERBS.items())
    folders = sorted(path for path in conf.rglob("*") if path.is_dir())
    groups = "\n".join(
        f"  {folder.relative_to(conf).as_posix():<18} "
        + ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
        for folder in folders
    )
    return HELP.format(verbs=verbs, groups=groups)
