"""Data in, ``matplotlib.figure.Figure`` out. Nothing here shows or saves a picture, or touches pyplot's state."""

from lightning_tricks.plots._confusion import confusion_matrix as confusion_matrix
from lightning_tricks.plots._curves import learning_curves as learning_curves
from lightning_tricks.plots._norms import plot_activations as plot_activations
from lightning_tricks.plots._norms import plot_gradient_norms as plot_gradient_norms
from lightning_tricks.plots._norms import plot_update_ratios as plot_update_ratios
from lightning_tricks.plots._norms import plot_weight_norms as plot_weight_norms
from lightning_tricks.plots._style import new_figure as new_figure
