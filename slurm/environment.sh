# shellcheck shell=bash
# What processes of ssae find around them. Sourced by the jobs' scripts and by slurm/sweep.

# shellcheck disable=SC2034 # of slurm/site.sh, for slurm/job.sh
srun_flags=() container=()
if [[ -f $SSAE_SNAPSHOT/slurm/site.sh ]]; then
    set +u # of `module load`; jobs run without it
    # shellcheck source=slurm/site.example.sh
    . "$SSAE_SNAPSHOT/slurm/site.sh"
fi
python=$SSAE_HOME/.venv/bin/python
[[ -x $python ]] || python=python3
python=${SSAE_PYTHON:-$python}
# The snapshot's code, not that of the clone: neither the installed nor that of the current folder.
export PYTHONPATH=$SSAE_SNAPSHOT${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1
export PYTHONUNBUFFERED=1 # a log that is read while it is written
