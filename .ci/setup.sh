#!/usr/bin/env bash
# Installs what is missing and says so; what is there is left alone, and a second run takes no time and no network.
#
#   .ci/setup.sh run         what `ebpfnet` and the demo need
#   .ci/setup.sh run test    … and the tests and benchmarks
#   .ci/setup.sh vm          … and other kernels
#
# Debian 12. Each topic has packages of the distribution and an extra of pyproject.toml; the virtual environment sees the
# distribution's Python packages, because BCC comes from there and from nowhere else.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
venv=$root/.venv
declare -A packages=(
	[run]="python3 python3-venv python3-bpfcc linux-libc-dev iproute2 util-linux"
	[test]="gcc libc6-dev clang-format iptables nftables iputils-ping traceroute ethtool"
	[vm]="qemu-system-x86 kmod busybox-static"
)
declare -A extras=([run]="" [test]="[dev]" [vm]="[vm]")

say() { echo "setup: $*"; }
fail() { echo "setup: $*" >&2; exit 1; }

# Everything that decides what is installed, as one line.
wanted() {
	{
		echo "$root" "${packages[$1]}"
		sed '/^# Gates\./,$d' "$root/pyproject.toml"
	} | sha256sum
}

missing_packages() {
	local name
	for name in ${packages[$1]}; do
		dpkg-query -W -f '${db:Status-Status}\n' "$name" 2>/dev/null | grep -qx installed || echo "$name"
	done
}

install_packages() {
	local missing
	missing=$(missing_packages "$1" | xargs)
	[ -n "$missing" ] || return 0
	[ "$(id -u)" = 0 ] || fail "not root, and these Debian packages are missing: $missing
       run this as root, or: apt-get install $missing"
	say "apt-get install $missing"
	apt-get -qq update
	# shellcheck disable=SC2086  # one argument a package
	DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install $missing >/dev/null
}

make_venv() {
	# A moved or half-made environment is made anew: its scripts name its own path.
	if ! grep -qs -- "--system-site-packages $venv\$" "$venv/pyvenv.cfg" || ! "$venv/bin/pip" --version >/dev/null 2>&1; then
		say "virtual environment .venv"
		rm -rf "$venv"
		/usr/bin/python3 -m venv --system-site-packages "$venv"
	fi
}

install_project() {
	say "pip install --editable .${extras[$1]}"
	"$venv/bin/pip" --disable-pip-version-check install --quiet --editable "$root${extras[$1]}"
}

command -v dpkg-query >/dev/null || fail "needs Debian 12: there is no dpkg here"
for topic in "${@:-run}"; do
	[ -n "${packages[$topic]:-}" ] || fail "no topic called $topic; there are: ${!packages[*]}"
	stamp=$venv/.setup-$topic
	if [ -x "$venv/bin/ebpfnet" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$(wanted "$topic")" ]; then
		continue
	fi
	install_packages "$topic"
	make_venv
	install_project "$topic"
	[ "$topic" != run ] || "$venv/bin/python" -c 'import bcc' || fail "python3-bpfcc is installed but does not import"
	wanted "$topic" >"$stamp"
	say "ready: $topic"
done
