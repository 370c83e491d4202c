"""Benchmarks: file formats, splits, the numbers of the papers and the runs that make ours."""
