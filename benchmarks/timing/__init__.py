"""The parts of speed.py: what each times, and the data they time it on."""
