from __future__ import annotations

from onlooker.batches import Identities, Process, Values
from onlooker.enrich.identify import Identifier
from support.request_batches import a_request, a_service, identities_of, requests


def test_pids_become_processes_and_services():
    identities = identities_of(a_service(1), a_service(7))
    batch = requests(Values(), [a_request(pid=1007), a_request(pid=1001), a_request(pid=1007)])
    batch = Identifier().identify(batch, identities)
    assert batch.service.tolist() == [7, 1, 7]
    assert batch.process.tolist() == [107, 101, 107]


def test_rows_of_unknown_processes_are_dropped_and_counted():
    stage = Identifier()
    batch = requests(Values(), [a_request(pid=5, path=b"/a"), a_request(pid=1001, path=b"/b"), a_request(pid=99999)])
    batch = stage.identify(batch, identities_of(a_service(1)))
    assert batch.service.tolist() == [1]
    assert batch.varying["url.path"][0] == b"/b"
    assert stage.dropped == {"unknown_process": 2, "no_exports": 0}


def test_nobody_is_known():
    stage = Identifier()
    assert len(stage.identify(requests(Values(), [a_request()]), Identities())) == 0
    assert stage.dropped["unknown_process"] == 1


def test_a_service_that_exports_nothing_is_dropped():
    stage = Identifier()
    identities = identities_of(a_service(1, exports=frozenset()), a_service(2, exports=frozenset({"traces"})))
    batch = stage.identify(requests(Values(), [a_request(service=1), a_request(service=2)]), identities)
    assert batch.service.tolist() == [2]
    assert stage.dropped == {"unknown_process": 0, "no_exports": 1}


def test_a_new_process_is_known_from_the_next_batch_on():
    identities = identities_of(a_service(1))
    stage = Identifier()
    assert len(stage.identify(requests(Values(), [a_request(pid=42)]), identities)) == 0
    identities.add_process(Process(900, 42, 0, "/bin/y", "y", "go", 1))
    batch = stage.identify(requests(Values(), [a_request(pid=42)]), identities)
    assert batch.process.tolist() == [900]
    # The pid is used again by another program.
    identities.add_service(a_service(2))
    identities.add_process(Process(901, 42, 0, "/bin/z", "z", "go", 2))
    batch = stage.identify(requests(Values(), [a_request(pid=42)]), identities)
    assert (batch.process.tolist(), batch.service.tolist()) == ([901], [2])


def test_an_empty_batch():
    batch = Identifier().identify(requests(Values(), []), identities_of(a_service(1)))
    assert len(batch) == len(batch.service) == 0
