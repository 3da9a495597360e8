"""Chooses the requests that become spans; metrics have counted all of them before.

Receives batches, sets ``keep``.  Drops nothing itself.
"""

from onlooker.sample.samplers import DEFAULT_SAMPLER, SAMPLERS, Sampler, Samplers, make_sampler

__all__ = ["DEFAULT_SAMPLER", "SAMPLERS", "Sampler", "Samplers", "make_sampler"]
