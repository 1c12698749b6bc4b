"""Weight initialisation: rules, by name or by looking at the net."""

from lightning_tricks.init._api import SCHEMES as SCHEMES
from lightning_tricks.init._api import Scheme as Scheme
from lightning_tricks.init._api import init_weights as init_weights
from lightning_tricks.init._api import matches as matches
from lightning_tricks.init._gains import kaiming_gain as kaiming_gain
from lightning_tricks.init._gains import tanh_gain as tanh_gain
from lightning_tricks.init._report import COLUMNS as COLUMNS
from lightning_tricks.init._report import SIGNAL_COLUMNS as SIGNAL_COLUMNS
from lightning_tricks.init._report import InitReport as InitReport
from lightning_tricks.init._rules import RULES as RULES
from lightning_tricks.init._signal import signal_deviations as signal_deviations
from lightning_tricks.init._untouched import is_small as is_small
from lightning_tricks.init._untouched import untouched_modules as untouched_modules
