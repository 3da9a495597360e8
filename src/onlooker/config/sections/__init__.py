"""The sections of the configuration file, each declared once."""
