"""Articulated figures, drawn: the data of a benchmark that is given none."""
