"""What ``ebpfnet agent`` makes of flags, environment and kube-proxy's file, as far as the node goes."""

from __future__ import annotations

import sys
from ipaddress import ip_address, ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from ebpfnet.cli.agent import agent
from ebpfnet.hosting import HostSettings
from ebpfnet.operate.nodeports import EVERYWHERE, NodePortAddresses

HEAD = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that says what an agent with these words would have been told of its node."""
    told: list[HostSettings] = []
    stand_in = SimpleNamespace(run=lambda config: told.append(config.host))
    monkeypatch.setitem(sys.modules, "ebpfnet.agent", stand_in)

    def parse(*words: str, environment: dict[str, str] | None = None) -> HostSettings | str:
        done = CliRunner().invoke(agent, words, env=environment, standalone_mode=True)
        return told.pop() if told else done.output

    return parse


def test_defaults(settings: Any):
    assert settings() == HostSettings()


def test_flags(settings: Any):
    words = ("--nodeport-addresses", "primary,10.0.0.0/8", "--cluster-cidr", "10.1.0.0/16,fd01::/48")
    found = settings(*words, "--service-cidr", "10.96.0.0/12", "--external-ip-cidr", "192.0.2.0/24",
                     "--external-ip-cidr", "198.51.100.0/24", "--service-node-port-range", "20000-22000")  # fmt: skip
    assert found == HostSettings(
        NodePortAddresses((ip_network("10.0.0.0/8"),), primary=True),
        (20000, 22000),
        (ip_network("10.1.0.0/16"), ip_network("fd01::/48")),
        (ip_network("10.96.0.0/12"),),
        (ip_network("192.0.2.0/24"), ip_network("198.51.100.0/24")),
    )


def test_environment(settings: Any):
    said = {"EBPFNET_NODEPORT_ADDRESSES": "all", "EBPFNET_EXTERNAL_IP_CIDR": "192.0.2.0/24,198.51.100.0/24"}
    found = settings(environment=said)
    assert found.nodeport_addresses == NodePortAddresses(EVERYWHERE, primary=False)
    assert len(found.external_ip_cidrs) == 2


def test_kube_proxys_file_and_flags_that_win_over_it(settings: Any, tmp_path: Path):
    path = tmp_path / "kp.yaml"
    path.write_text(f"{HEAD}clusterCIDR: 10.1.0.0/16\nnodePortAddresses: [10.0.0.0/8]\nbindAddress: 192.0.2.1\n")
    found = settings("--config", str(path))
    assert found.nodeport_addresses == NodePortAddresses((ip_network("10.0.0.0/8"),), primary=False)
    assert found.cluster_cidrs == (ip_network("10.1.0.0/16"),)
    assert found.bind_address == ip_address("192.0.2.1")
    found = settings("--config", str(path), "--cluster-cidr", "10.2.0.0/16", "--nodeport-addresses", "primary")
    assert found.cluster_cidrs == (ip_network("10.2.0.0/16"),)
    assert found.nodeport_addresses == NodePortAddresses()


def test_a_file_without_them_is_read_as_kube_proxy_reads_it(settings: Any, tmp_path: Path):
    path = tmp_path / "kp.yaml"
    path.write_text(f"{HEAD}mode: nftables\n")
    assert settings("--config", str(path)).nodeport_addresses == NodePortAddresses()
    path.write_text(f"{HEAD}mode: iptables\n")
    assert settings("--config", str(path)).nodeport_addresses == NodePortAddresses(EVERYWHERE, primary=False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--nodeport-addresses", "somewhere"), "'somewhere' has no prefix length"),
        (("--external-ip-cidr", "192.0.2.0/33"), "--external-ip-cidr"),
        (("--service-node-port-range", "30000"), "'30000' is not FIRST-LAST"),
        (("--service-node-port-range", "3-2"), "'3-2' is not FIRST-LAST"),
    ],
)
def test_what_is_refused(settings: Any, words: tuple[str, ...], said: str):
    assert said in settings(*words)


@pytest.mark.parametrize(("words", "graceful"), [((), False), (("--policy-established", "graceful"), True)])
def test_what_becomes_of_connections_that_a_policy_allows_no_more(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], *, graceful: bool
):
    told: list[Any] = []
    monkeypatch.setitem(sys.modules, "ebpfnet.agent", SimpleNamespace(run=told.append))
    CliRunner().invoke(agent, [*words, "--metrics-policies", "7"], standalone_mode=True)
    assert (told[0].graceful, told[0].telemetry.metrics_policies) == (graceful, 7)
