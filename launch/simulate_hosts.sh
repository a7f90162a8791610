#!/bin/bash
# Simulates hosts with network namespaces: one address and one sshd each, joined by a bridge, all on this file system.
#   launch/simulate_hosts.sh check              print in one line what is missing, if anything
#   launch/simulate_hosts.sh up COUNT DIR       create hosts; writes their keys, a hostfile and `environment` to DIR
#   launch/simulate_hosts.sh run DIR COMMAND..  run a command on the first host with `environment` set
#   launch/simulate_hosts.sh cut DIR HOST       disconnect one host (1, 2, ...)
#   launch/simulate_hosts.sh join DIR HOST      connect it again
#   launch/simulate_hosts.sh down DIR           remove everything
# Needs root, iproute2, openssh-server and, for pdsh, pdsh.
set -euo pipefail

SSH_PORT=2277

fail() { echo "$*" >&2; exit 1; }

check() {
    local tool
    [ "$(id -u)" = 0 ] || fail "needs root"
    for tool in ip ssh ssh-keygen; do command -v "$tool" >/dev/null || fail "$tool is missing"; done
    [ -x /usr/sbin/sshd ] || fail "sshd is missing (apt-get install openssh-server)"
    ip netns add bali-check 2>/dev/null || fail "network namespaces are not allowed here"
    ip netns delete bali-check
}

name_of() { echo "bali-$(cat "$1/network")-$2"; }
address_of() { echo "10.$((77 + $(cat "$1/network") / 250)).$(($(cat "$1/network") % 250)).$2"; }

up() {
    local count=$1 dir=$2 host ns address bridge
    check
    mkdir -p "$dir" /run/sshd
    # Every directory has its own network, so that several can be up at once.
    echo $((RANDOM % 5000)) >"$dir/network"
    echo "$count" >"$dir/count"
    bridge=balibr$(cat "$dir/network")
    trap 'down "$dir"' ERR
    ssh-keygen -q -t ed25519 -N "" -f "$dir/host_key"
    ssh-keygen -q -t ed25519 -N "" -f "$dir/key"
    install -m 600 "$dir/key.pub" "$dir/authorized_keys"
    ip link add "$bridge" type bridge
    ip link set "$bridge" up
    for host in $(seq "$count"); do
        ns=$(name_of "$dir" "$host") address=$(address_of "$dir" "$host")
        ip netns add "$ns"
        ip link add "bv$(cat "$dir/network")x$host" type veth peer name eth0 netns "$ns"
        ip link set "bv$(cat "$dir/network")x$host" master "$bridge" up
        ip -n "$ns" link set lo up
        ip -n "$ns" address add "$address/24" dev eth0
        ip -n "$ns" link set eth0 up
        # Each host needs its own host name, by which OpenMPI distinguishes hosts.
        # shellcheck disable=SC2016  # expanded by the inner shell
        ip netns exec "$ns" unshare --uts bash -c 'hostname "$0"; exec "$@"' "$ns" /usr/sbin/sshd -f /dev/null \
            -h "$dir/host_key" -o Port=$SSH_PORT -o ListenAddress="$address" -o PidFile="$dir/sshd.$host.pid" \
            -o AuthorizedKeysFile="$dir/authorized_keys" -o StrictModes=no -o PermitRootLogin=prohibit-password -o UsePAM=no -E "$dir/sshd.$host.log"
        echo "$address slots=1" >>"$dir/hostfile"
    done
    ssh_options="-i $dir/key -p $SSH_PORT -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
    # ssh to a lost host ends after fifteen seconds.
    ssh_options+=" -o LogLevel=ERROR -o ServerAliveInterval=5 -o ServerAliveCountMax=3"
    # The launcher forwards these to every rank. It does not accept blank lines or comments.
    printf '%s\n' GLOO_SOCKET_IFNAME=eth0 DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 \
        "DEEPSPEED_TIMEOUT=${DEEPSPEED_TIMEOUT:-5}" >"$dir/forwarded"
    cat >"$dir/environment" <<END
export DS_ENV_FILE='$dir/forwarded'
export PDSH_SSH_ARGS_APPEND='$ssh_options'
export PRTE_MCA_plm_ssh_agent='ssh $ssh_options'
export MASTER_ADDR='$(address_of "$dir" 1)'
END
    sed 's/^/export /' "$dir/forwarded" >>"$dir/environment"
    trap - ERR
}

run() {
    local dir=$1
    shift
    # shellcheck disable=SC2016  # expanded by the inner shell
    exec nsenter --target "$(cat "$dir/sshd.1.pid")" --net --uts \
        bash -c '. "$1/environment"; shift; exec "$@"' run "$dir" "$@"
}

cable() { ip link set "bv$(cat "$1/network")x$2" "$3"; }

down() {
    local dir=$1 host ns
    for host in $(seq "$(cat "$dir/count")"); do
        ns=$(name_of "$dir" "$host")
        # Every process of the namespace, including its sshd, belongs to the simulated host.
        # shellcheck disable=SC2046
        kill -9 $(ip netns pids "$ns" 2>/dev/null) 2>/dev/null || true
        ip netns delete "$ns" 2>/dev/null || true
    done
    ip link delete "balibr$(cat "$dir/network")" 2>/dev/null || true
}

command=${1:-}
[ $# -eq 0 ] || shift
case "$command" in
    check) check ;;
    up) up "$1" "$2" ;;
    run) run "$@" ;;
    cut) cable "$1" "$2" down ;;
    join) cable "$1" "$2" up ;;
    down) down "$1" ;;
    *) fail "usage: $0 check | up COUNT DIR | run DIR COMMAND | cut DIR HOST | join DIR HOST | down DIR" ;;
esac
