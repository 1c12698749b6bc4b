"""Monte-Carlo dropout, and what to measure on its samples."""

from lightning_tricks.uncertainty._engine import MCEngine as MCEngine
from lightning_tricks.uncertainty._engine import mc_forward as mc_forward
from lightning_tricks.uncertainty._engine_mode import StochasticSite as StochasticSite
from lightning_tricks.uncertainty._engine_plan import EngineReport as EngineReport
