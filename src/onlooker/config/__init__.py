"""The configuration: declared once (`model`), read strictly (`loader`), compiled for discovery (`selection`).

Other parts take a `Config` as an argument; only the command line loads one.
"""

from onlooker.config.loader import Loaded, load, load_text
from onlooker.config.model import Config
from onlooker.config.origins import Note, Origin
from onlooker.config.selection import Selection, Selector

__all__ = ["Config", "Loaded", "Note", "Origin", "Selection", "Selector", "load", "load_text"]
