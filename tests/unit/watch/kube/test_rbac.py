"""What an agent may ask for is what it follows; tests/netns/test_kube.py compares with what a running one asks."""

from __future__ import annotations

from pathlib import Path

import yaml

from ebpfnet.watch.kube.source import peer_resources, resources

ROOT = Path(__file__).parents[4]


def test_every_resource_that_is_followed_may_be_read_and_no_other():
    followed = {tuple(each.path.split("/")[-3:]) for each in (*resources("a"), *peer_resources("a"))}
    wanted = {("" if head == "api" else head, plural) for head, _, plural in followed}
    [role] = [
        each for each in yaml.safe_load_all((ROOT / "deploy/rbac.yaml").read_text()) if each["kind"] == "ClusterRole"
    ]
    allowed = {
        (group, plural)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for plural in rule["resources"]
        if {"list", "watch"} <= set(rule["verbs"])
    }
    assert wanted == allowed
