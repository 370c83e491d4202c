"""Readers of the data sets the benchmarks run on.

Every reader raises FileNotFoundError for what is not there, `UnreadableImageError` (an OSError) for an image
that cannot be read, and ValueError for what is damaged or does not fit together; the message names the file.
"""
