"""Exact curvature: closed forms, spectra and their statistics."""
