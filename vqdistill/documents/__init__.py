"""Texts and metadata beside an index, in one SQLite file, and the filters that choose among them."""
