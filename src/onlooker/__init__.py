"""onlooker: traces, metrics and a service graph of running services, from the outside."""

__version__ = "0.1.0"
