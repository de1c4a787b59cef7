"""Widths of a graph search that are tried, in rising order."""

EF_LADDER = (10, 12, 15, 18, 22, 27, 33, 40, 50, 62, 78, 98, 125, 160, 210, 280, 400, 600, 900)
