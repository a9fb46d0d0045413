#!/usr/bin/env bash
# Runs as root inside the virtual machine: the tests named after OUT, with the project's root read-only beneath.
# The exit status goes to OUT/status, written last: without it the machine was lost.
set -u
project=$1 out=$2
shift 2
cd "$project" || exit 1

# The system's own preparations that nobody else makes here.
mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf
findmnt -t cgroup2 >/dev/null || mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs tmpfs /root
ip link set lo up

# CI: hypothesis has no deadlines then, and an emulated CPU would miss them. Caches would land in the read-only project.
export CI=true EBPFNET_NO_SKIP=1 PYTHONDONTWRITEBYTECODE=1 HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis
export EBPFNET_LAB_TIMEOUT=300
uname -r >"$out/release"
.venv/bin/pytest --color=no -p no:cacheprovider --junitxml "$out/junit.xml" "$@" 2>&1 | tee "$out/pytest.log"
echo "${PIPESTATUS[0]}" >"$out/status.part"
mv "$out/status.part" "$out/status"
sync
