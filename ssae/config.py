"""What composing a config needs: where conf/ lies, and the resolvers that it uses."""

import datetime
import os
import re
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import OmegaConf

from ssae.artifact.store import content_hash

HERE = Path(__file__).parent
# In a wheel conf/ lies inside the package, in a clone beside it.
CONF = HERE / "conf" if (HERE / "conf").is_dir() else HERE.parent / "conf"


def register_resolvers() -> None:
    """Make the resolvers of conf/ known, once in a process."""
    for name, resolve, use_cache in (
        ("bundled", lambda model: str(HERE / "models" / model), False),
        ("wandb_offline", wandb_offline, False),
        # Cached: the jobs of a sweep get the folder that was found when it was started.
        ("run_id", run_id, True),
        ("sweep_dir", sweep_dir, True),
        ("swept", swept, True),
        ("job_id", job_id, False),
        ("group", group, False),
    ):
        OmegaConf.register_new_resolver(name, resolve, use_cache=use_cache)


def wandb_offline() -> bool:
    """W&B without a key would stop and ask: run offline then (`wandb sync` uploads later)."""
    if os.environ.get("WANDB_MODE") or os.environ.get("WANDB_API_KEY"):
        return os.environ.get("WANDB_MODE", "online") != "online"
    import wandb
    from wandb.sdk.lib import wbauth

    host = os.environ.get("WANDB_BASE_URL") or wandb.Settings().base_url
    try:
        return wbauth.read_netrc_auth(host=host) is None
    except wandb.Error:  # an entry that holds no key
        return True


def run_id() -> str:
    """Return the name of a run's folder: that of its job (slurm/job.sh), else the time."""
    return os.environ.get("SSAE_RUN") or f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}"


def sweep_dir(runs: str, name: str, overrides: Any) -> str:
    """Return the folder of a sweep: the same for the same command, so that it continues."""
    return str(Path(runs, name, f"sweep_{content_hash(sorted(overrides))[:8]}"))


def swept(overrides: Any) -> list[str]:
    """Return the keys of a sweep's overrides that its jobs differ in.

    >>> swept(["verb=run", "seed=0,1", "specialist.lr=interval(1e-4, 1e-2)", "sae.k=8"])
    ['seed', 'specialist.lr']
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [one.get_key_element() for one in parsed if one.is_sweep_override()]


def job_id(overrides: Any, swept: Any) -> str:
    """Return the name of a job's folder: what it does not share with the others, and a hash of all.

    >>> job_id(["seed=1", "verb=run", "corpus.pool=/data/pool", "objective.tilt=5"], ["seed"])
    'seed=1-13e32e3f'
    """
    own = [word for word in overrides if word.split("=", 1)[0] in swept]
    name = re.sub(r"[^\w.,=+-]+", "_", ",".join(sorted(own)))[:100]
    return f"{name}-{content_hash(sorted(overrides))[:8]}".removeprefix("-")


def group() -> str:
    """Return what the runs that one command starts have in common: their folder below `runs`."""
    try:
        hydra = HydraConfig.get()
    except ValueError:  # composed without a run
        return ""
    sweeps = hydra.mode == RunMode.MULTIRUN
    return "/".join(Path(hydra.sweep.dir if sweeps else hydra.run.dir).parts[-2:])
