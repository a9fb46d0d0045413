"""From one plan to another: what is only in the old one goes, what is only in the new one comes.

Bringing a lab up is the way from the empty plan, and following edited manifests is the same way from the last plan;
there is no second way to build anything.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable

from ebpfnet.lab import agents, echoes, wires
from ebpfnet.lab.state import VERSION, Options, Places, State, save
from ebpfnet.lab.topology import Plan

Say = Callable[[str], None]


def move(places: Places, options: Options, have: Plan, want: Plan, deadline: float, say: Say) -> None:
    """Make the lab what ``want`` says, given that it is what ``have`` says; the state on disk goes along.

    What should run and does not (any more) is started.
    """
    stays = _staying(have, want)
    save(places, State(VERSION, False, options, _both(have, want), stays))
    _remove(places, have, stays, say)
    if not have.nodes:
        wires.build_uplink(want, options.uplink_mtu)
    _add_nodes(places, options, have, want, say)
    new = [pod for pod in want.pods if pod not in stays.pods]
    for pod in new:
        wires.build_pod(want, pod)
    if new:
        say(f"{_count(len(new), 'pod')} wired")
    if mute := [pod for pod in want.pods if pod in new or not echoes.is_running(places, pod)]:
        echoes.start(places, mute, deadline)
        say("echo servers listen")
    save(places, State(VERSION, True, options, want))  # all is built; an agent that is late now is only waited for
    if options.agents:
        agents.wait_ready(places, want, deadline, say)
    for pod in want.pods:  # those that were not served in time last time, too
        wires.open_pod(pod)


def retreat(places: Places, found: State) -> Plan:
    """Take away what a change that did not come to its end may have left half made; returns what is there for sure."""
    sure = found.sure or Plan(found.plan.lab, found.plan.uplink_netns)
    _remove(places, found.plan, sure, lambda _: None)
    for node in sure.nodes:
        wires.set_routes(sure, node, found.plan)
    wires.set_outside_routes(sure, found.plan)
    if not sure.nodes:
        wires.remove_uplink(found.plan)
    save(places, State(VERSION, False, found.options, sure, sure))
    return sure


def _remove(places: Places, have: Plan, stays: Plan, say: Say) -> None:
    old_pods = [pod for pod in have.pods if pod not in stays.pods]
    old_nodes = [node for node in have.nodes if node not in stays.nodes]
    echoes.stop(places, old_pods)
    for pod in old_pods:
        wires.remove_pod(pod)
        say(f"pod {pod.full_name} removed")
    agents.stop(places, [node.name for node in old_nodes])
    for node in old_nodes:
        wires.remove_node(node)
        shutil.rmtree(places.pins(node.name), ignore_errors=True)
        shutil.rmtree(places.run(node.name), ignore_errors=True)
        say(f"node {node.name} removed")
    if have.outside is not None and have.outside != stays.outside:
        wires.remove_node(have.outside)


def _add_nodes(places: Places, options: Options, have: Plan, want: Plan, say: Say) -> None:
    new = [node for node in want.nodes if node not in have.nodes]
    for node in new:
        wires.build_node(want, node, options.uplink_mtu)
        say(f"node {node.name} is there ({', '.join(node.addresses)})")
    if want.outside is not None and want.outside != have.outside:
        wires.build_node(want, want.outside, options.uplink_mtu)
        say(f"a client outside is there ({', '.join(want.outside.addresses)})")
    for node in want.nodes:
        wires.set_routes(want, node, have)
    wires.set_outside_routes(want, have)
    if options.agents:  # compiling takes them a while, in which pods are wired
        for node in want.nodes:
            if node in new:
                agents.start(places, node, options)
            elif not agents.is_running(places, node.name):
                agents.start(places, node, options)
                say(f"the agent of {node.name} was dead and is started again")


def _staying(have: Plan, want: Plan) -> Plan:
    """Return what is in both plans. The wire of a pod goes with its node."""
    nodes = tuple(node for node in have.nodes if node in want.nodes)
    names = {node.name for node in nodes}
    pods = tuple(pod for pod in have.pods if pod in want.pods and pod.node in names)
    outside = have.outside if have.outside == want.outside else None
    return Plan(want.lab, want.uplink_netns, nodes, pods, outside, have.served)


def _both(have: Plan, want: Plan) -> Plan:
    """Return a plan that names everything of both, so that a crash in between leaves nothing unnamed."""
    nodes = dict.fromkeys((*have.nodes, *want.nodes))
    pods = dict.fromkeys((*have.pods, *want.pods))
    served = dict.fromkeys((*have.served, *want.served))
    return Plan(want.lab, want.uplink_netns, tuple(nodes), tuple(pods), want.outside or have.outside, tuple(served))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
