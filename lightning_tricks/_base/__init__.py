"""What every subpackage may use: messages, optional extras, monitored values, seeds, module modes, logger output."""

from lightning_tricks._base._extras import require_extra as require_extra
from lightning_tricks._base._loggers import alert as alert
from lightning_tricks._base._loggers import log_figure as log_figure
from lightning_tricks._base._loggers import log_metrics as log_metrics
from lightning_tricks._base._loggers import log_table as log_table
from lightning_tricks._base._loggers import log_text as log_text
from lightning_tricks._base._messages import UserInputError as UserInputError
from lightning_tricks._base._messages import check_choice as check_choice
from lightning_tricks._base._messages import check_range as check_range
from lightning_tricks._base._messages import warn_once as warn_once
from lightning_tricks._base._modes import preserved_modes as preserved_modes
from lightning_tricks._base._monitor import MissingMetricError as MissingMetricError
from lightning_tricks._base._monitor import check_monitor_early as check_monitor_early
from lightning_tricks._base._monitor import infer_mode as infer_mode
from lightning_tricks._base._monitor import monitored_value as monitored_value
from lightning_tricks._base._parameters import NORMS as NORMS
from lightning_tricks._base._parameters import is_matrix as is_matrix
from lightning_tricks._base._parameters import require_sizes as require_sizes
from lightning_tricks._base._random import derive_seed as derive_seed
from lightning_tricks._base._random import isolated_rng as isolated_rng
from lightning_tricks._base._random import rng_state as rng_state
from lightning_tricks._base._random import set_rng_state as set_rng_state
from lightning_tricks._base._renames import RENAMED_ARGUMENTS as RENAMED_ARGUMENTS
from lightning_tricks._base._renames import accepts_old_names as accepts_old_names
from lightning_tricks._base._run_records import log_artifact as log_artifact
from lightning_tricks._base._run_records import log_summary as log_summary
