"""What libraries say of their own accord, left to what a user can act on."""

import logging
import warnings

import datasets
import lightning  # noqa: F401 - its import sets its loggers' level
import transformers

from ssae.process.ranks import rank


def quiet_libraries() -> None:
    """Leave progress and warnings to what a user can act on."""
    if rank() > 0:
        logging.disable(logging.INFO)  # rank 0 tells the same story
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for name in ("httpx", "faiss.loader"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns at every matrix product
    # Said on every machine that has SLURM; ranks that nobody started are refused anyway.
    warnings.filterwarnings("ignore", message=".*`srun` command is available.*")
    # Batches come straight from mapped files: worker processes would only copy them.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # frozen
    # Batches are a function of the step: our loader resumes exactly (activation/datamodule.py).
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
