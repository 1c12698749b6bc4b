"""Data in, ``matplotlib.figure.Figure`` out. Nothing here shows or saves a picture, or touches pyplot's state."""

from lightning_tricks.plots._confusion import confusion_matrix as confusion_matrix
from lightning_tricks.plots._curves import learning_curves as learning_curves
from lightning_tricks.plots._data import plot_image_rows as plot_image_rows
from lightning_tricks.plots._style import new_figure as new_figure
