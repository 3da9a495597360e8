"""Delivers spans and metrics: over OTLP, to a terminal, to Prometheus.

Receives batches whose ``keep`` column says which rows become spans, and snapshots of all metrics.  What cannot be
delivered within the bounds of queue and retry is dropped and counted by reason; capture never waits for a receiver.
"""
