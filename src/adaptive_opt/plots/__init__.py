"""Figures, each described once as data and drawn with Plotly or Matplotlib."""
