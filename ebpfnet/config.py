"""What an agent is told by its flags."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ebpfnet import abi
from ebpfnet.datapath import build
from ebpfnet.hosting import HostSettings
from ebpfnet.maps import pins
from ebpfnet.places import RUN
from ebpfnet.telemetry import Settings

SIZED_BY = {
    "flows": "--max-flows",
    "services": "--max-services",
    "sets": "--max-services",
    "slots": "--max-endpoints",
    "names": "--max-services",
}
"""Which flag decides how many entries a table has."""


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """The agent's flags."""

    node_name: str
    uplink: tuple[str, ...]
    pod_interfaces: tuple[str, ...] = ()
    manifests: Path | None = None
    """A folder that says what the cluster is; None: its API server does."""
    kubeconfig: Path | None = None
    api_server_urls: tuple[str, ...] = ()
    service_proxy_name: str = ""
    pins: Path = pins.DEFAULT
    run: Path = RUN
    cache: Path | None = build.DEFAULT_CACHE
    max_flows: int = abi.TABLES["flows"].max_entries
    max_services: int = abi.TABLES["services"].max_entries
    max_endpoints: int = abi.TABLES["slots"].max_entries
    sweep_interval: float = 30.0
    socket_shortcut: str = ""
    graceful: bool = False
    """Whether connections that a policy allows no more are left until they end, where the policy does not say."""
    telemetry: Settings = field(default_factory=Settings)
    host: HostSettings = field(default_factory=HostSettings)
    adopt: bool = False
    """Whether connections that kube-proxy's rules translated are taken over, once, after the first sync."""
    specs: dict[str, abi.TableSpec] = field(init=False)

    def __post_init__(self) -> None:
        sizes = {"flows": self.max_flows, "services": self.max_services, "slots": self.max_endpoints}
        # A name for each service port and each pod, and as many again for those that take their places.
        sizes["names"] = self.max_services + max(self.max_services, abi.TABLES["pods"].max_entries)
        specs = {
            name: spec._replace(max_entries=sizes.get(name, spec.max_entries)) for name, spec in abi.TABLES.items()
        }
        object.__setattr__(self, "specs", specs)
