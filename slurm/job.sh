# shellcheck shell=bash
# What every script here does on the first node of its job: run_ssae <verb> [overrides].

# 75: ssae was warned and has a checkpoint; 138: SIGUSR1 came before Python could listen.
AGAIN='^(75|138)$'

job=$SLURM_JOB_ID
[[ -n ${SLURM_ARRAY_JOB_ID:-} ]] && job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID

# Submitted by sbatch itself: the code of the clone, as it is when the job first starts.
if [[ -z ${SSAE_SNAPSHOT:-} ]]; then
    mkdir -p runs/slurm
    if [[ ! -s runs/slurm/$job.snapshot ]]; then
        "$SSAE_HOME/slurm/snapshot" >"runs/slurm/$job.snapshot" || exit 1
    fi
    SSAE_SNAPSHOT=$(<"runs/slurm/$job.snapshot")
    export SSAE_SNAPSHOT
fi
# shellcheck source=slurm/environment.sh
. "$SSAE_SNAPSHOT/slurm/environment.sh"

run_ssae() {
    local verb=$1 status gpus=${SLURM_GPUS_ON_NODE:-0} tasks=${SLURM_NTASKS_PER_NODE:-1}
    shift
    if ((gpus > 0 && gpus != tasks)); then
        echo "job.sh: a GPU has one task, but a node has $gpus GPUs and $tasks tasks; submit with" \
            "--ntasks-per-node=$gpus (or --gpus-per-node=$tasks)" >&2
        exit 1
    fi
    # The address by which SLURM itself reaches the first node: names may not resolve.
    MASTER_ADDR=$(scontrol show node "$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)" |
        sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
    export MASTER_ADDR OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
    export SSAE_RUN=${SSAE_RUN:-job_$job} # its folder in runs/<name>, also after a requeue
    echo "job.sh: $verb as job $job, start $((${SLURM_RESTART_COUNT:-0} + 1)), on $SLURM_JOB_NODELIST," \
        "$tasks tasks a node, code of $SSAE_SNAPSHOT"
    # srun does not inherit --cpus-per-task. One rank that fails ends the others, which wait for it.
    srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "${srun_flags[@]}" \
        "${container[@]}" "$python" -m ssae "$verb" \
        trainer.devices="$tasks" trainer.num_nodes="$SLURM_JOB_NUM_NODES" "$@"
    status=$?
    [[ $status =~ $AGAIN ]] && start_again
    exit "$status"
}

# The time is up, or the job makes room for another: it continues when it gets its turn again.
start_again() {
    local most=${SSAE_MAX_RESTARTS:-100}
    if ((${SLURM_RESTART_COUNT:-0} >= most)); then
        echo "job.sh: not started again after $most times (SSAE_MAX_RESTARTS); the same command goes on" >&2
        exit 1
    fi
    echo "job.sh: requeueing job $job"
    if scontrol requeue "$job"; then
        sleep 300 # until SLURM ends this script
    elif [[ -n ${SSAE_SUBMITTED:-} ]]; then
        echo "job.sh: this cluster does not requeue it; submitting what comes after it"
        eval "$SSAE_SUBMITTED" && exit 0
    fi
    echo "job.sh: job $job could not be started again; the same command goes on" >&2
    exit 1
}
