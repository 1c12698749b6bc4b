"""Many nets of one architecture trained as one: stacked parameters, optimizers, equivalence checks."""

from lightning_tricks.stacked._fit import StackedRun as StackedRun
from lightning_tricks.stacked._fit import fit_stacked as fit_stacked
from lightning_tricks.stacked._module import StackedModule as StackedModule
