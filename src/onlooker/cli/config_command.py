"""``onlooker config check|show|schema``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping

from onlooker.cli.parser import flags_of
from onlooker.config import load
from onlooker.config.schema import json_schema
from onlooker.config.show import as_yaml, effective


def main(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Run one of the actions; the exit code is the result."""
    if args.action == "schema":
        json.dump(json_schema(), sys.stdout, indent=2)
        print()
        return 0
    loaded = load(args.config, environ=environ, flags=flags_of(args), euid=os.geteuid())
    for note in loaded.notes:
        print(f"onlooker: note: {note}", file=sys.stderr)
    if args.action == "show":
        if args.as_json:
            json.dump(effective(loaded, everything=args.defaults), sys.stdout, indent=2)
            print()
        else:
            sys.stdout.write(as_yaml(loaded, everything=args.defaults))
        return 0
    source = str(loaded.path) if loaded.path else "no file; defaults and environment"
    if args.strict and loaded.notes:
        print(f"onlooker: {len(loaded.notes)} notes, and --strict was given ({source})", file=sys.stderr)
        return 2
    chosen = len(loaded.selection.selectors)
    print(f"ok: {source}; {chosen} {'entry selects' if chosen == 1 else 'entries select'} processes")
    return 0
