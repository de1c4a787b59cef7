"""Training of a model's query side against a teacher's relevance (torch)."""
