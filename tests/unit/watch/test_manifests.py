"""A folder of manifests: read, followed, and never trusted half written."""

from __future__ import annotations

import json
import os
import queue
import threading
from pathlib import Path

import pytest

from ebpfnet.exits import BadInput
from ebpfnet.model.facts import (
    Accepted,
    Change,
    ClusterNetworkPolicy,
    Delete,
    NetworkPolicy,
    Refused,
    Service,
    Synced,
    Upsert,
)
from ebpfnet.watch.manifests import ManifestSource, parse, read

A = "kind: Node\nmetadata: {name: a}\n"
B = "kind: Node\nmetadata: {name: b}\n"


def told(changes) -> list[str]:
    out = []
    for change in changes:
        match change:
            case Upsert(fact):
                out.append(f"+{fact.ref.name}")
            case Delete(ref):
                out.append(f"-{ref.name}")
            case Refused(problem):
                out.append(f"!{Path(problem.ref.name).name}")
            case Accepted(ref):
                out.append(f"ok {Path(ref.name).name}")
            case Synced(complete):
                out.append("synced" if complete else "synced in part")
    return out


@pytest.fixture
def source(tmp_path: Path) -> ManifestSource:
    (tmp_path / "a.yaml").write_text(A)
    found = ManifestSource(tmp_path, settle_s=0)
    assert told(found.scan()) == ["+a"]
    return found


def test_nothing_changed_nothing_told(source: ManifestSource):
    assert source.scan() == []


def test_rewritten_with_the_same_content_tells_nothing(source: ManifestSource):
    (source.folder / "a.yaml").write_text("# the same\n" + A)
    assert source.scan() == []


def test_new_file(source: ManifestSource):
    (source.folder / "b.yml").write_text(B)
    assert told(source.scan()) == ["+b"]


def test_deleted_file(source: ManifestSource):
    (source.folder / "a.yaml").unlink()
    assert told(source.scan()) == ["-a"]


def test_an_object_that_moves_between_files_is_not_deleted(source: ManifestSource):
    (source.folder / "a.yaml").rename(source.folder / "z.yaml")
    assert source.scan() == []


def test_half_written_keeps_the_last_good_version(source: ManifestSource):
    (source.folder / "a.yaml").write_text("kind: Node\nmetadata: {name: [")
    [refused] = source.scan()
    assert isinstance(refused, Refused)
    assert refused.problem.field.startswith("line ")
    (source.folder / "a.yaml").write_text(B)
    assert told(source.scan()) == ["-a", "+b", "ok a.yaml"]


@pytest.mark.parametrize("text", ["", "---\n", "# to be written\n"])
def test_truncated_keeps_the_last_good_version(source: ManifestSource, text: str):
    (source.folder / "a.yaml").write_text(text)
    [refused] = source.scan()
    assert isinstance(refused, Refused)
    assert "remove it" in refused.problem.reason
    (source.folder / "a.yaml").write_text(A)
    assert told(source.scan()) == ["ok a.yaml"]


def test_a_file_that_is_being_written_is_read_when_it_has_settled(tmp_path: Path):
    patient = ManifestSource(tmp_path, settle_s=1000)
    path = tmp_path / "a.yaml"
    path.write_text(A)
    os.utime(path, (1, 1))
    assert told(patient.scan()) == ["+a"]
    path.write_text(B)
    assert patient.scan() == []
    assert patient.unsettled
    os.utime(path, (2, 2))
    assert told(patient.scan()) == ["-a", "+b"]
    assert not patient.unsettled


def test_a_bad_version_of_an_object_keeps_the_last_good_one(source: ManifestSource):
    (source.folder / "a.yaml").write_text("kind: Node\nmetadata: {name: a}\nspec: {podCIDR: x}\n")
    assert told(source.scan()) == ["!a"]
    (source.folder / "a.yaml").write_text(A)
    assert told(source.scan()) == ["ok a"]


def test_a_bad_version_of_a_policy_isolates(source: ManifestSource):
    """The last good one would let pass what the bad one may forbid; of both kinds."""
    text = "kind: {kind}\nmetadata: {{name: p}}\nspec: {spec}\n"
    path, version = source.folder / "p.yaml", "apiVersion: policy.networking.k8s.io/v1alpha2\n"
    for head, kind, good, bad in (
        ("", "NetworkPolicy", "{ingress: [{}]}", "{ingress: [{from: [{}]}]}"),
        (version, "ClusterNetworkPolicy", "{tier: Admin, priority: 1, subject: {namespaces: {}}}", "{priority: x}"),
    ):
        path.write_text(head + text.format(kind=kind, spec=good))
        [one] = source.scan()
        path.write_text(head + text.format(kind=kind, spec=bad) + "# longer\n")
        other, problem = source.scan()
        assert isinstance(one, Upsert)
        assert isinstance(one.fact, NetworkPolicy | ClusterNetworkPolicy)
        assert isinstance(other, Upsert)
        assert isinstance(other.fact, NetworkPolicy | ClusterNetworkPolicy)
        assert isinstance(problem, Refused)
        assert (one.fact.ref.kind, one.fact.refused, other.fact.refused, problem.partial) == (kind, False, True, True)
        assert other.fact.ref == one.fact.ref == problem.problem.ref
        path.unlink()
        source.scan()


def test_a_new_generation_of_the_same_policy_is_told(source: ManifestSource):
    """Somebody may wait for it."""
    text = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p, generation: %d}}"
    for generation in (1, 2):
        (source.folder / "policy.yaml").write_text(text % generation)
        (told_now,) = source.scan()
        assert isinstance(told_now, Upsert)
        assert isinstance(told_now.fact, NetworkPolicy)
        assert told_now.fact.generation == generation
    assert source.scan() == []


def test_a_policy_that_takes_anothers_place_is_there_before_that_one_goes(source: ManifestSource):
    """Whom both isolate is open to nobody in between."""
    text = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: %s}}"
    (source.folder / "policy.yaml").write_text(text % "old")
    source.scan()
    (source.folder / "policy.yaml").write_text(text % "new")
    assert told(source.scan()) == ["+new", "-old"]


def test_one_object_in_two_files_is_taken_from_the_first_and_named(source: ManifestSource):
    (source.folder / "b.yaml").write_text(A)
    [refused] = source.scan()
    assert isinstance(refused, Refused)
    assert "a.yaml" in refused.problem.reason
    assert "b.yaml" in refused.problem.reason
    (source.folder / "a.yaml").unlink()
    assert told(source.scan()) == ["ok a"]


def test_editors_files_are_no_manifests(source: ManifestSource):
    for name in (".a.yaml.swp", ".#a.yaml", "a.yaml~", "#a.yaml#", "4913", ".hidden.yaml"):
        (source.folder / name).write_text(B)
    assert source.scan() == []


def test_a_folder_that_goes_away_deletes_nothing(source: ManifestSource):
    moved = source.folder.with_name("moved")
    source.folder.rename(moved)
    assert told(source.scan()) == [f"!{source.folder.name}"]
    moved.rename(source.folder)
    assert told(source.scan()) == [f"ok {source.folder.name}"]


def test_lists_documents_and_json():
    one = json.dumps({"kind": "NodeList", "items": [{"metadata": {"name": "a"}}, {"metadata": {"name": "b"}}]})
    assert len(parse("x.json", one.encode()).facts) == 2
    assert len(parse("x.yaml", f"{A}---\n{B}---\n".encode()).facts) == 2
    assert parse("x.yaml", b"").facts == {}


def test_not_an_object():
    content = parse("x.yaml", b"- 1\n- 2\n")
    assert content.broken


def test_read_once(tmp_path: Path):
    (tmp_path / "a.yaml").write_text(A)
    assert told(read([tmp_path])) == ["+a", "synced"]
    with pytest.raises(BadInput, match="no such file"):
        read([tmp_path / "none"])


def test_changes_are_delivered_while_running(tmp_path: Path):
    delivered: queue.Queue[list[Change]] = queue.Queue()
    stop = threading.Event()
    thread = threading.Thread(target=ManifestSource(tmp_path).run, args=(delivered.put, stop))
    thread.start()
    try:
        assert told(delivered.get(timeout=60)) == ["synced"]
        (tmp_path / "new").write_text(A)
        (tmp_path / "new").rename(tmp_path / "a.yaml")
        assert told(delivered.get(timeout=60)) == ["+a"]
        (tmp_path / "a.yaml").unlink()
        assert told(delivered.get(timeout=60)) == ["-a"]
    finally:
        stop.set()
        thread.join(timeout=60)
    assert not thread.is_alive()


def test_a_node_that_is_in_no_manifest_is_named_until_it_is(tmp_path: Path):
    source = ManifestSource(tmp_path, settle_s=0, node="b")
    assert told(source.scan()) == ["!b"]
    (tmp_path / "a.yaml").write_text(A)
    assert told(source.scan()) == ["+a"]
    (tmp_path / "b.yaml").write_text(B)
    assert set(told(source.scan())) == {"+b", "ok b"}
    (tmp_path / "b.yaml").unlink()
    assert set(told(source.scan())) == {"-b", "!b"}


SERVED = "kind: Service\nmetadata: {name: web, labels: {%s}}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}\n"
PROXY = "service.kubernetes.io/service-proxy-name"


def test_a_service_that_is_given_to_another_proxy_is_gone(tmp_path: Path):
    path, ours = tmp_path / "a.yaml", ManifestSource(tmp_path, settle_s=0)
    theirs = ManifestSource(tmp_path, settle_s=0, proxy_name="other")
    path.write_text(SERVED % "")
    assert (foreign(ours.scan()), foreign(theirs.scan())) == ([False], [True])
    path.write_text(SERVED % f"{PROXY}: other")
    assert (foreign(ours.scan()), foreign(theirs.scan())) == ([True], [False])
    assert (foreign(read([path])), foreign(read([path], "other"))) == ([True], [False])


def foreign(changes: list[Change]) -> list[bool]:
    """Return of each service that came whether it is another proxy's."""
    facts = [each.fact for each in changes if isinstance(each, Upsert)]
    return [fact.foreign for fact in facts if isinstance(fact, Service)]
