"""The benchmark suite: ``python -m benchmarks run`` in a checkout."""
