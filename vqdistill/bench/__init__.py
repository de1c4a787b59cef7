"""Benchmark of recall, speed and memory: ours beside what users would pick instead, on their own data."""
