"""Kedro pipelines of the study."""
