"""From the configuration to the options of stages, where that is more than handing on."""

from __future__ import annotations

from pathlib import Path

import pytest

from onlooker.config import Config, load
from onlooker.settings import SPAN_WAIT_S, exporters, span_wait_s


def a_config(directory: Path, text: str) -> Config:
    path = directory / "onlooker.yaml"
    path.write_text(text)
    return load(str(path), environ={}, flags={}, euid=0).config


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("{}", SPAN_WAIT_S),
        ("otel_traces_export: {batch_timeout: 200ms}", 0.1),
        ("otel_metrics_export: {ttl: 4s}\nprometheus_export: {ttl: 3s}", 2.0),  # a series must outlive its spans
        ("otel_metrics_export: {ttl: 0s}\nprometheus_export: {ttl: 0s}", SPAN_WAIT_S),  # series that never end
    ],
)
def test_spans_wait_no_longer_than_half_of_what_bounds_them(tmp_path: Path, text: str, seconds: float) -> None:
    assert span_wait_s(a_config(tmp_path, text)) == pytest.approx(seconds)


@pytest.mark.parametrize("timeout", ["15s", "200ms"])
def test_buffer_and_queue_together_wait_for_the_batch_timeout(tmp_path: Path, timeout: str) -> None:
    config = a_config(
        tmp_path,
        f"otel_traces_export: {{endpoint: 'http://127.0.0.1:4318/v1/traces', protocol: http/protobuf, "
        f"batch_timeout: {timeout}}}",
    )
    spans, _ = exporters(config)
    assert spans is not None
    assert spans._limits.batch_age_s + span_wait_s(config) == pytest.approx(config.otel_traces_export.batch_timeout)
