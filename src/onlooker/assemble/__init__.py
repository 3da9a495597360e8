"""Receives records of the kernel, hands on finished requests as columns; counts halves that never met."""
