"""The agent **attaches** probes: finds what to probe in the programs that processes run, and holds the links.

Receives process ids, hands on TLS libraries with probe sites (`tls`), and links (`registry`).
"""
