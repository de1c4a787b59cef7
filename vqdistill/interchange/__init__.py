"""Indexes in the files of other engines: the same lists, codebooks, codes, vectors and ids."""
