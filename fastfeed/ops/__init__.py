"""Fused ops, one a file: eager reference, registration, autograd, public function."""
