"""Embedding files, relevance and teachers: everything that training and compilation read."""
