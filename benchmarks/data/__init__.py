"""Readers of the data sets the benchmarks run on."""
