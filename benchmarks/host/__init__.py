"""What happens on the host, by pytest-benchmark: ``make bench``."""
