"""The index on disk: what its files say, how they are written, how they are read."""
