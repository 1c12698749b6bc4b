"""Findings: what is wrong with a run, where, and the cure; and the page that shows them."""

from lightning_tricks.diagnosis._check import check as check
from lightning_tricks.diagnosis._check import rules_for as rules_for
from lightning_tricks.diagnosis._check import run_rules as run_rules
from lightning_tricks.diagnosis._constant_predictor import GuessLoss as GuessLoss
from lightning_tricks.diagnosis._curve import LossCurve as LossCurve
from lightning_tricks.diagnosis._evidence import Evidence as Evidence
from lightning_tricks.diagnosis._evidence import LayerActivity as LayerActivity
from lightning_tricks.diagnosis._evidence import NormRecord as NormRecord
from lightning_tricks.diagnosis._finding import Finding as Finding
from lightning_tricks.diagnosis._finding import Severity as Severity
from lightning_tricks.diagnosis._html import Cell as Cell
from lightning_tricks.diagnosis._html import Note as Note
from lightning_tricks.diagnosis._html import Picture as Picture
from lightning_tricks.diagnosis._html import Section as Section
from lightning_tricks.diagnosis._html import Table as Table
from lightning_tricks.diagnosis._html import Text as Text
from lightning_tricks.diagnosis._html import html_report as html_report
from lightning_tricks.diagnosis._html import write_atomically as write_atomically
from lightning_tricks.diagnosis._losses import LossCall as LossCall
from lightning_tricks.diagnosis._losses import LossSpy as LossSpy
from lightning_tricks.diagnosis._probe import Probe as Probe
from lightning_tricks.diagnosis._probe import untouched as untouched
from lightning_tricks.diagnosis._report import Report as Report
from lightning_tricks.diagnosis._thresholds import Thresholds as Thresholds
from lightning_tricks.diagnosis._training_watch import TrainingWatch as TrainingWatch
