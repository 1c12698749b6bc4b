"""How many faults the checks find, how many they name right, and how often they accuse the healthy.

Run: python -m benchmarks.faults --out faults.jsonl
Further programs and faults: --module my_programs.py, which uses the names below.
"""

from benchmarks.faults import _faults_data as _faults_data
from benchmarks.faults import _faults_model as _faults_model
from benchmarks.faults import _faults_training as _faults_training
from benchmarks.faults import _programs_image as _programs_image
from benchmarks.faults import _programs_sequence as _programs_sequence
from benchmarks.faults import _programs_tabular as _programs_tabular
from benchmarks.faults._case import Case as Case
from benchmarks.faults._case import DictDataset as DictDataset
from benchmarks.faults._case import DoesNotFit as DoesNotFit
from benchmarks.faults._case import Learner as Learner
from benchmarks.faults._case import Stream as Stream
from benchmarks.faults._registry import FAULTS as FAULTS
from benchmarks.faults._registry import PROGRAMS as PROGRAMS
from benchmarks.faults._registry import fault as fault
from benchmarks.faults._registry import load_module as load_module
from benchmarks.faults._registry import program as program
