"""How the tests themselves are run."""

import os

import pytest


def test_tests_that_share_a_study_run_in_one_process(request):
    """pytest-xdist notes the group in the name; without it each process would make the study."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("there is one process")
    assert request.node.nodeid.endswith("@tests/test_suite.py")
