"""A line of the input: what it may look like, and what is said of one that makes no sense."""

from typing import Any

import pytest

from ebpfnet.simulate.flows import BadFlow, Flow, parse

FLOW = {"from": "default/client", "to": "default/web", "port": 80}


@pytest.mark.parametrize("given", [{"port": "80"}, {"protocol": "tcp"}, {"protocol": "Tcp", "port": "0080"}])
def test_the_same_flow_in_other_letters(given: dict[str, Any]) -> None:
    assert parse({**FLOW, **given}) == Flow("default/client", "default/web", 80)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"port": [80]}, "port: a number or a text is expected, not a list"),
        ({"port": 0}, "port: a number of at least 1 is expected"),
        ({"port": "70000"}, "port: 70000 is not a port (1 to 65535)"),
        ({"port": "9" * 5000}, "port: 9999"),
        ({"from": 5}, "from: a text is expected, not a number"),
        ({"samples": "x"}, "samples: a number is expected, not a text"),
        ({"colour": 1}, "colour: there is no such field"),
        ({"protocol": "gre"}, "protocol: 'gre' is none of TCP, UDP, SCTP, ICMP"),
    ],
)
def test_what_is_wrong_is_said_of_its_field(given: dict[str, Any], text: str) -> None:
    with pytest.raises(BadFlow) as refused:
        parse({**FLOW, **given})
    assert str(refused.value).startswith(text)
