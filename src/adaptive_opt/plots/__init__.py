"""Figures: each is described once and drawn with Plotly and with Matplotlib."""
