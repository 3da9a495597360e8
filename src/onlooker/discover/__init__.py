"""Discovery: which processes are watched, what they are written in, and what they are called.

Receives the selection of the configuration, process records of the kernel and ``/proc``.  Hands on the filter of
watched processes and the `onlooker.batches.Identities`.  Drops nothing silently: each process that is left out has a
reason in `Watcher.decisions`.
"""
