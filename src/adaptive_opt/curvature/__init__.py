"""Curvature of losses: exact Hessians, spectra, statistics and quality of estimates."""
