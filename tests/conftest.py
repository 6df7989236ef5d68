"""Shared set-up. Runs before any test module, so before any kernel is imported."""

import gc
import importlib.util
import os

import pytest
import torch

from tests.interpreter import patch_language_once

HAS_GPU = torch.cuda.is_available()
HAS_DALI = importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None

# Processes that share the cores must not each take all of them: small ops wait for threads that do not run.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))

if not HAS_GPU:
    # Triton reads this when a kernel is decorated, that is on the first import of a kernel file.
    os.environ["TRITON_INTERPRET"] = "1"
    if importlib.util.find_spec("triton") is not None:
        patch_language_once()


def pytest_collection_modifyitems(config, items):
    for item in items:
        if not HAS_GPU and "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU, and torch.cuda.is_available() is False"))
        elif not HAS_DALI and "dali" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs NVIDIA DALI, which is not installed"))


def pytest_collection_finish():
    # What has been imported and collected stays to the end: garbage collections need not go through it, of which some
    # tests make several.
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter, config):
    reasons = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])]
    needs = (
        ("GPU tests", "an NVIDIA GPU"),
        ("DALI tests", "NVIDIA DALI"),
        ("test files", "torchvision"),
    )
    for what, missing in needs:
        if count := sum(f"needs {missing}" in reason for reason in reasons):
            terminalreporter.write_sep(
                "!", f"{count} {what} NOT RUN: no {missing.removeprefix('an ')} here", yellow=True, bold=True
            )
