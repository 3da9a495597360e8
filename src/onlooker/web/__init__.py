"""The page, its API, health and metrics, over one HTTP server on loopback."""
