from __future__ import annotations

import threading

import pytest

from onlooker.aggregate.own import MAX_LABEL_SETS, OwnMetrics
from onlooker.errors import AgentError
from onlooker.snapshot import HOST_SERVICE_ID, MetricKind


def values(own):
    return {
        metric.name: {tuple(p.attributes.values()): p.value for p in metric.points}
        for metric in own.snapshot(5).metrics
    }


@pytest.fixture
def own() -> OwnMetrics:
    return OwnMetrics(version="1.2.3", start_unix_ns=1)


def test_counters_gauges_and_build_info(own):
    lost = own.counter("lost_requests", "Requests that were lost.", label="reason")
    lost.add(2, "ring_full")
    lost.add(1, "ring_full")
    lost.add(1, "unreadable")
    own.gauge("onlooker_series", "Live series.").set(7)
    own.gauge("memory", "Resident memory.", unit="By", read=lambda: 1024)
    own.counter("seen", "By kind.", label="kind", read=lambda: {"http": 3})
    assert values(own) == {
        "onlooker_build_info": {("1.2.3", "python"): 1},
        "onlooker_lost_requests": {("ring_full",): 3, ("unreadable",): 1},
        "onlooker_series": {(): 7},
        "onlooker_memory": {(): 1024},
        "onlooker_seen": {("http",): 3},
    }
    lost_metric = next(m for m in own.snapshot(5).metrics if m.name == "onlooker_lost_requests")
    assert lost_metric.kind is MetricKind.SUM
    assert {(p.service_id, p.start_unix_ns, p.time_unix_ns) for p in lost_metric.points} == {(HOST_SERVICE_ID, 1, 5)}


def test_the_same_metric_can_be_asked_for_twice_but_not_as_another_one(own):
    assert own.counter("x", "X.") is own.counter("onlooker_x", "X.")
    with pytest.raises(AgentError, match="onlooker_x exists already"):
        own.gauge("x", "X.")


def test_labels_are_bounded(own):
    counter = own.counter("x", "X.", label="reason")
    for i in range(MAX_LABEL_SETS + 50):
        counter.add(1, f"r{i}")
    assert len(counter.values()) == MAX_LABEL_SETS + 1
    assert counter.values()["other"] == 50


def test_a_missing_or_needless_label_is_a_mistake(own):
    with pytest.raises(AgentError, match="takes one label value"):
        own.counter("x", "X.", label="reason").add(1)
    with pytest.raises(AgentError, match="takes no label value"):
        own.counter("y", "Y.").add(1, "z")


def test_no_count_is_lost_between_threads(own):
    counter = own.counter("x", "X.", label="reason")
    threads = [threading.Thread(target=lambda: [counter.add(1, "a") for _ in range(2000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter.values() == {"a": 8000}


def test_build_info_can_be_left_out():
    assert values(OwnMetrics(version="1", start_unix_ns=1, build_info=False)) == {}
