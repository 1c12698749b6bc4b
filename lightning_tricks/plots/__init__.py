"""Data in, ``matplotlib.figure.Figure`` out. Nothing here shows or saves a picture, or touches pyplot's state."""

from lightning_tricks.plots._confusion import confusion_matrix as confusion_matrix
from lightning_tricks.plots._curves import learning_curves as learning_curves
from lightning_tricks.plots._init import signal_figure as signal_figure
from lightning_tricks.plots._lr import lr_find_figure as lr_find_figure
from lightning_tricks.plots._style import new_figure as new_figure
