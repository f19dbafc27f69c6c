"""Hyperparameter search with Optuna: spaces, shared studies, objectives."""
