"""What all benchmarks share: options, methods, runs, results."""
