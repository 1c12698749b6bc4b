"""Data in, ``matplotlib.figure.Figure`` out. Nothing here shows or saves a picture, or touches pyplot's state."""

from lightning_tricks.plots._augment import plot_augmented as plot_augmented
from lightning_tricks.plots._confusion import confusion_matrix as confusion_matrix
from lightning_tricks.plots._curves import learning_curves as learning_curves
from lightning_tricks.plots._data import plot_image_rows as plot_image_rows
from lightning_tricks.plots._diagnosis import training_curve as training_curve
from lightning_tricks.plots._init import signal_figure as signal_figure
from lightning_tricks.plots._lr import lr_find_figure as lr_find_figure
from lightning_tricks.plots._norms import plot_activations as plot_activations
from lightning_tricks.plots._norms import plot_gradient_norms as plot_gradient_norms
from lightning_tricks.plots._norms import plot_update_ratios as plot_update_ratios
from lightning_tricks.plots._norms import plot_weight_norms as plot_weight_norms
from lightning_tricks.plots._plateau import plot_simulation as plot_simulation
from lightning_tricks.plots._search import parallel_coordinates as parallel_coordinates
from lightning_tricks.plots._search import search_importance as search_importance
from lightning_tricks.plots._search import search_points as search_points
from lightning_tricks.plots._search import search_progress as search_progress
from lightning_tricks.plots._search_pairs import search_pairs as search_pairs
from lightning_tricks.plots._style import COLORS as COLORS
from lightning_tricks.plots._style import DASHES as DASHES
from lightning_tricks.plots._style import new_figure as new_figure
from lightning_tricks.plots._uncertainty import convergence_plot as convergence_plot
from lightning_tricks.plots._uncertainty import most_uncertain_pictures as most_uncertain_pictures
from lightning_tricks.plots._uncertainty import regression_band as regression_band
from lightning_tricks.plots._uncertainty import reliability_diagram as reliability_diagram
from lightning_tricks.plots._uncertainty import risk_coverage_curve as risk_coverage_curve
from lightning_tricks.plots._uncertainty import uncertainty_histogram as uncertainty_histogram
