#!/usr/bin/env bash
# Installs what is missing and says so; what is there is left alone, and a second run takes no time and no network.
#
#   .ci/setup.sh run         what `ebpfnet` and the demo need
#   .ci/setup.sh run test    … and the tests and benchmarks
#   .ci/setup.sh run vm      … and other kernels
#
# Debian 12. Each topic has packages of the distribution and an extra of pyproject.toml; the virtual environment sees the
# distribution's Python packages, because BCC comes from there and from nowhere else.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
venv=$root/.venv
declare -A packages=(
	[run]="python3 python3-venv python3-bpfcc linux-libc-dev iproute2 util-linux curl"
	[test]="gcc libc6-dev clang-format iptables nftables iputils-ping traceroute ethtool"
	[vm]="qemu-system-x86 kmod busybox-static"
)
declare -A extra=([run]="" [test]="dev" [vm]="vm")

say() { echo "setup: $*"; }
fail() { echo "setup: $*" >&2; exit 1; }

# Everything that decides what a topic installs, as one line; .venv/.setup-TOPIC holds what was installed.
wanted() {
	{
		echo "$root" "${packages[$1]}"
		sed '/^# Gates\./,$d' "$root/pyproject.toml"
	} | sha256sum
}

is_ready() {
	[ -x "$venv/bin/ebpfnet" ] && [ "$(cat "$venv/.setup-$1" 2>/dev/null)" = "$(wanted "$1")" ]
}

install_packages() {
	local name missing=()
	for name in "$@"; do
		dpkg-query -W -f '${db:Status-Status}\n' "$name" 2>/dev/null | grep -qx installed || missing+=("$name")
	done
	[ ${#missing[@]} != 0 ] || return 0
	[ "$(id -u)" = 0 ] || fail "not root, and Debian packages are missing; as root: apt-get install ${missing[*]}"
	say "apt-get install ${missing[*]}"
	apt-get -qq update
	DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends -o DPkg::Lock::Timeout=120 \
		install "${missing[@]}" >/dev/null
}

# A moved or half-made environment is made anew: its scripts name its own path.
make_venv() {
	if ! grep -qs -- "--system-site-packages $venv\$" "$venv/pyvenv.cfg" || ! "$venv/bin/pip" --version >/dev/null 2>&1; then
		say "virtual environment .venv"
		rm -rf "$venv"
		/usr/bin/python3 -m venv --system-site-packages "$venv"
	fi
	"$venv/bin/python" -c 'import bcc' || fail "python3-bpfcc is installed, but the virtual environment cannot import it"
}

install_project() {
	say "pip install --editable .${1:+[$1]}"
	"$venv/bin/pip" --disable-pip-version-check install -qq --editable "$root${1:+[$1]}"
}

command -v dpkg-query >/dev/null || fail "needs Debian 12: there is no dpkg here"
stale=()
for topic in "$@"; do
	[ -n "${packages[$topic]:-}" ] || fail "no topic called $topic; there are: ${!packages[*]}"
	is_ready "$topic" || stale+=("$topic")
done
[ ${#stale[@]} != 0 ] || exit 0

names="" extras=""
for topic in "${stale[@]}"; do
	names+=" ${packages[$topic]}"
	extras+=${extra[$topic]:+${extras:+,}${extra[$topic]}}
done
# shellcheck disable=SC2086  # one argument a package
install_packages $names
make_venv
install_project "$extras"
for topic in "${stale[@]}"; do
	wanted "$topic" >"$venv/.setup-$topic"
done
say "ready: ${stale[*]}"
