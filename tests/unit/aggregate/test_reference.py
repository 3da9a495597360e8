from __future__ import annotations

import pathlib

import numpy as np

from onlooker.aggregate.aggregator import AggregateOptions, Aggregator
from onlooker.aggregate.definitions import DEFINITIONS, FEATURES, INFO_METRICS
from onlooker.aggregate.own import OwnMetrics
from onlooker.batches import Identities, Values
from onlooker.export.prometheus import metric_name
from onlooker.snapshot import MetricKind

PAGE = (pathlib.Path(__file__).parents[3] / "docs/reference/metrics.md").read_text(encoding="utf-8")


def test_every_metric_and_attribute_is_on_the_page():
    for definition in DEFINITIONS:
        assert f"`{definition.name}`" in PAGE
        kind = MetricKind.HISTOGRAM if definition.histogram else MetricKind.SUM
        name = metric_name(definition.name, definition.unit, kind) + ("" if definition.histogram else "_total")
        assert name in PAGE
        for attribute in (*definition.attributes, *definition.optional):
            assert f"`{attribute}`" in PAGE
    assert all(f"`{name}`" in PAGE for name, _ in INFO_METRICS)
    assert all(f"`{feature}`" in PAGE for feature in FEATURES)


def test_every_own_metric_of_this_stage_is_on_the_page():
    own = OwnMetrics(version="1", start_unix_ns=0)
    rng = np.random.default_rng(1)
    Aggregator(AggregateOptions(), Identities(), Values(), rng=rng, clock_unix_ns=lambda: 1).describe(own)
    metrics = own.snapshot(1).metrics
    assert len(metrics) == 6
    for metric in metrics:
        assert f"`{metric.name}{'_total' if metric.kind is MetricKind.SUM else ''}`" in PAGE
        assert [point.value for point in metric.points] == [1 if metric.name == "onlooker_build_info" else 0]
