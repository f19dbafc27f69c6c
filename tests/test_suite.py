"""Grouping of the tests for pytest-xdist."""

import os

import pytest


def test_tests_have_a_group(request):
    """Without groups, each process would run the study. pytest-xdist adds the group to the id."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("the tests run in one process")
    assert request.node.nodeid.endswith("@tests/test_suite.py")
