"""The study as Kedro pipelines."""
