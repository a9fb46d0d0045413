"""How a lab is: a plain document for ``ebpfnet lab status``."""

from __future__ import annotations

import dataclasses
from typing import Any

from ebpfnet.lab import agents, echoes, processes
from ebpfnet.lab.cluster import Lab
from ebpfnet.lab.state import Places, load
from ebpfnet.lab.topology import NodePlan, PodPlan


def report(lab: Lab) -> dict[str, Any]:
    """Return the lab's nodes and pods with what is known of their processes."""
    state = load(lab.name)
    return {
        "name": lab.name,
        "settled": state.settled,
        "uplink_mtu": lab.options.uplink_mtu,
        "agents": lab.options.agents,
        "manifests": str(lab.manifests),
        "logs": str(lab.places.logs),
        "uplink_netns": lab.plan.uplink_netns,
        "outside": dataclasses.asdict(lab.plan.outside) if lab.plan.outside else None,
        "served": list(lab.plan.served),
        "nodes": [_node(lab.places, node) for node in lab.plan.nodes],
        "pods": [_pod(lab.places, pod) for pod in lab.plan.pods],
    }


def _node(places: Places, node: NodePlan) -> dict[str, Any]:
    process = processes.recorded(agents.record(places, node.name))
    alive = process is not None and process.alive()
    status = agents.ask(places, node.name, "status") if alive else None
    return {
        "name": node.name,
        "netns": node.netns,
        "addresses": list(node.addresses),
        "pod_cidrs": list(node.pod_cidrs),
        "pins": str(places.pins(node.name)),
        "run": str(places.run(node.name)),
        "log": str(agents.log_path(places, node.name)),
        "agent": {
            "pid": process.pid if process is not None and alive else None,
            "answers": status is not None,
            "synced": bool(status and status.get("synced")),
            "pending": status.get("pending") if status else None,
            "problems": len(status.get("problems", [])) if status else None,
        },
    }


def _pod(places: Places, pod: PodPlan) -> dict[str, Any]:
    process = processes.recorded(echoes.record(places, pod))
    return {
        "namespace": pod.namespace,
        "name": pod.name,
        "node": pod.node,
        "netns": pod.netns,
        "addresses": list(pod.addresses),
        "host_network": pod.host_network,
        "host_interface": pod.host_interface or None,
        "echo": process.pid if process is not None and process.alive() else None,
    }
