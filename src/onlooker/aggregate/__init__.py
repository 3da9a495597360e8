"""Sums over requests: receives enriched requests, hands on snapshots of all metrics."""
