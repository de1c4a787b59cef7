"""HTTP server: open indexes behind FastAPI, bounded in everything that a request may take."""
