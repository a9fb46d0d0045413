"""Where the cluster's objects come from: an API server, or a folder of manifests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ebpfnet.config import AgentConfig
from ebpfnet.exits import NotRunning
from ebpfnet.watch.manifests import ManifestSource
from ebpfnet.watch.source import Source

if TYPE_CHECKING:  # 30 ms of import that an agent of manifests does not need
    from ebpfnet.watch.kube.sender import Sender


def of(config: AgentConfig) -> tuple[Source, Sender | None]:
    """Return what the flags say to follow, and who takes Events there; raises ``NotRunning`` without the folder."""
    if config.manifests is None:
        from ebpfnet.watch.kube import connection, sender
        from ebpfnet.watch.kube.source import KubeSource, peer_resources, resources

        api = connection.Api(lambda: connection.load(config.kubeconfig), config.api_server_urls)
        followed, peers = resources(config.node_name, config.service_proxy_name), peer_resources(config.node_name)
        source = KubeSource(api, config.node_name, followed, peers)
        return source, sender.Sender(api, [*followed, *peers])
    if not config.manifests.is_dir():
        raise NotRunning(f"{config.manifests}: no such folder of manifests")
    return ManifestSource(config.manifests, node=config.node_name, proxy_name=config.service_proxy_name), None
