"""livelm: small language models that learn from live streams."""
