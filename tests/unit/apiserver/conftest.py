"""A small cluster behind an API server: nodes n0 to n2, pods p0 to p6, pod i on node i % 3."""

from collections.abc import Iterator

import pytest

from tests import clusters
from tests.apiserver.client import Client
from tests.apiserver.server import ApiServer
from tests.apiserver.store import Store


@pytest.fixture
def store() -> Store:
    return Store([*clusters.nodes(3), *(clusters.pod(index, index % 3) for index in range(7))])


@pytest.fixture
def server(store: Store) -> Iterator[ApiServer]:
    with ApiServer(store) as server:
        yield server


@pytest.fixture
def client(server: ApiServer) -> Client:
    return Client(server.url)
