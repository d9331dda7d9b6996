# shellcheck shell=bash
# Copy to slurm/site.sh (git ignores it) and keep what your cluster wants. It is read when a job is
# submitted and again when it runs. Keys (WANDB_API_KEY, HF_TOKEN) belong into your environment, not here.

# Flags of sbatch for every job; those of the command line win. `man sbatch`, INPUT ENVIRONMENT VARIABLES.
export SBATCH_PARTITION=gpu
export SBATCH_ACCOUNT=my_project
# export SBATCH_TIMELIMIT=12:00:00

# What Python needs.
# module load python/3.11 cuda/12.4
# SSAE_PYTHON=/path/to/venv/bin/python

# A container around every rank (build it as docker/README.md says); the snapshot's code runs in it.
# container=(apptainer exec --nv --bind "$PWD" ssae.sif) SSAE_PYTHON=/opt/venv/bin/python   # apptainer
# srun_flags=(--container-image="$PWD/ssae.sqsh" --container-mounts="$PWD:$PWD" --container-workdir="$PWD")   # pyxis
# SSAE_PYTHON=/opt/venv/bin/python

# Networks that NCCL (GPUs) and gloo (CPUs) do not find themselves: `ip address` on a node names them.
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
# export NCCL_DEBUG=WARN
