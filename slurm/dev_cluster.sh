#!/usr/bin/env bash
# A SLURM cluster of two nodes on this machine, to try jobs on: slurm/dev_cluster.sh up|down|status
#
#   apt-get install slurm-wlm munge
#   eval "$(slurm/dev_cluster.sh up)"        # exports SLURM_CONF, which sbatch, squeue, ... read
#   slurm/submit cpu train --nodes=2 --cpus-per-task=1 -- arm=generalist
#   slurm/dev_cluster.sh down
#
# Everything it writes lies in SSAE_CLUSTER (/tmp/ssae_cluster_<user id>), its ports are free ones, and
# it ends only processes whose numbers it wrote down there. It keeps no accounts (no sacct).
set -euo pipefail

folder=${SSAE_CLUSTER:-/tmp/ssae_cluster_$(id -u)}
export SLURM_CONF=$folder/slurm.conf
PATH=$PATH:/usr/sbin:/sbin

fail() {
    echo "dev_cluster.sh: $*" >&2
    exit 1
}

[[ $folder =~ [[:space:]] ]] && fail "SSAE_CLUSTER='$folder' has a space, which slurm.conf cannot hold"

# The process of a pid file, if it is still the daemon that was started.
running() { # name
    local pid
    pid=$(cat "$folder/$1.pid" 2>/dev/null) || return 1
    [[ $(cat "/proc/$pid/comm" 2>/dev/null) == "${1%%-*}" ]] && echo "$pid"
}

free_ports() { # number
    python3 - "$1" <<'PYTHON'
import socket
import sys

sockets = [socket.socket() for _ in range(int(sys.argv[1]))]
for one in sockets:
    one.bind(("127.0.0.1", 0))
print(*(one.getsockname()[1] for one in sockets))
PYTHON
}

configure() {
    local host cpus memory controller first second
    host=$(hostname -s)
    cpus=$(env -u OMP_NUM_THREADS nproc) # which would take it for the number
    ((cpus >= 2)) || cpus=2               # a node of one is no place for two ranks
    memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
    read -r controller first second < <(free_ports 3)
    mkdir -p "$folder"/{state,spool-n1,spool-n2,munge}
    chmod 700 "$folder/munge"
    (umask 077 && head -c 1024 /dev/urandom >"$folder/munge/key")
    # Both nodes are this machine: each offers all of its processors, so that the sum is twice what
    # there is. Short intervals, since jobs of a test last seconds.
    cat >"$SLURM_CONF" <<CONF
ClusterName=ssae_dev
SlurmctldHost=$host(127.0.0.1)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
SlurmctldPort=$controller
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool-%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=20
MinJobAge=300
SlurmctldTimeout=30
SlurmdTimeout=20
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$first CPUs=$cpus RealMemory=$memory State=UNKNOWN
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=$second CPUs=$cpus RealMemory=$memory State=UNKNOWN
PartitionName=dev Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
CONF
}

up() {
    for program in munged slurmctld slurmd sbatch scontrol; do
        command -v "$program" >/dev/null ||
            fail "$program is not installed: apt-get install slurm-wlm munge"
    done
    if running slurmctld >/dev/null; then
        echo "export SLURM_CONF=$SLURM_CONF"
        return
    fi
    down # what is left of one that was killed
    configure
    # --force: munged warns of folders that others may write to, such as /tmp.
    munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" \
        --pid-file="$folder/munged.pid" --log-file="$folder/munge/log" \
        --seed-file="$folder/munge/seed" 2>>"$folder/munge/log"
    slurmctld -f "$SLURM_CONF"
    slurmd -f "$SLURM_CONF" -N n1
    slurmd -f "$SLURM_CONF" -N n2
    for _ in $(seq 60); do
        if [[ $(sinfo --noheader --format=%t%D 2>/dev/null) == idle2 ]]; then
            echo "export SLURM_CONF=$SLURM_CONF"
            return
        fi
        sleep 0.5
    done
    status >&2 || true
    fail "the nodes did not come up in 30 s; see $folder/*.log"
}

down() {
    if running slurmctld >/dev/null; then
        timeout 10 scancel --quiet --user="$(id -un)" || true
        for _ in $(seq 60); do # so that no step outlives its node
            [[ -z $(timeout 5 squeue --noheader 2>/dev/null) ]] && break
            sleep 0.5
        done
    fi
    local name pid
    for name in slurmd-n1 slurmd-n2 slurmctld munged; do
        pid=$(running "$name") || continue
        kill "$pid"
        for _ in $(seq 40); do
            running "$name" >/dev/null || break
            sleep 0.25
        done
        running "$name" >/dev/null && kill -KILL "$pid"
    done
    # SSAE_CLUSTER may name anything: only what this script made is removed.
    if [[ -f $SLURM_CONF ]] && grep -q "^ClusterName=ssae_dev$" "$SLURM_CONF"; then
        rm -rf "$folder"
    elif [[ -n $(ls -A "$folder" 2>/dev/null) ]]; then
        fail "$folder holds no cluster of this script; set SSAE_CLUSTER to a new folder"
    fi
}

status() {
    local name
    for name in munged slurmctld slurmd-n1 slurmd-n2; do
        echo "$name: $(running "$name" || echo "not running")"
    done
    running slurmctld >/dev/null || exit 1
    sinfo
    squeue
}

case ${1:-} in
up | down | status) "$1" ;;
*) fail "say up, down or status" ;;
esac
