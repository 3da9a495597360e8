"""The command line: reads flags, loads the configuration, hands over to the part that does the work.

Parts are imported when their command runs, so that ``--version``, ``config check`` and completion are quick.
"""
