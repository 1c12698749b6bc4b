"""Every number that the rules of training compare with, in one place, so that a benchmark can tune them."""

from dataclasses import dataclass, fields

from lightning_tricks._base import UserInputError


@dataclass(frozen=True)
class Thresholds:
    """What the rules of training compare with.

    Args:
        window: optimizer steps whose losses are taken together, and from one look to the next.
        confirm: looks in a row that a condition must hold before it is a finding.
        start: first losses whose median is where the run began.
        min_steps: steps before a run can be said not to learn.
        planned_share: share of the planned steps before that, too, but not more than ``max_wait`` steps.
        max_wait: see ``planned_share``.
        significance: standard errors by which the loss must have fallen to have learned something.
        least_gain: share of the reference (what guessing gives, or the start) by which it must have fallen, too.
        barely: share of what guessing gives above which the loss has fallen by next to nothing.
        slow: share of what guessing gives above which alarms about the inside of the network count.
        above_guess: factor on the loss of guessing above which the model is worse than guessing.
        rise: share of the start by which the loss must be above it to diverge.
        rise_noise: the same in standard deviations of one step's loss.
        lost: share of all that was gained that must be lost again to diverge.
        lost_gain: share of the reference that must have been gained for that.
        swing: lag-one autocorrelation of the losses below which they alternate.
        swing_size: standard deviation of swinging losses, as a share of their level and of the reference.
        swing_growth: factor by which the relative swing of the losses has grown since the start.
        hump: share of the reference by which the loss must have risen again, for two windows, to oscillate.
        stalled_level: share of the reference above which a loss that no longer falls is one that stalled.
        high_ratio: update ratio (of all weights together) that is too high where the loss does not fall.
        high_first_ratio: the same in the first steps.
        low_ratio: update ratio that is too low where the loss does not fall.
        vanishing: ratio of a layer's root mean square gradient to the largest one.
        vanishing_total: norm of the whole gradient.
        exploding: factor by which the norm of the gradient has grown since the first records.
        exploding_depth: factor between the gradients of the first and last layer, or the activations of the last and
            first.
        dead: share of dead units of a layer.
        saturated: share of saturated values of a layer.
        clipped_share: share of the records in which clipping bound.
        clipped_records: records before that is judged.
        clipped_factor: median factor of clipping below which it is a warning.
        overfit_rise: share of its best value by which the validation loss must have risen.
        overfit_lost: the same as a share of all that it had gained since the first validation.
        overfit_gap: share of what guessing gives by which the best validation loss is above the training loss.
        overfit_checks: validations in a row since the best one.
        stagnant_share: share of the run without a better loss.
        stagnant_steps: steps without a better loss, at least.
        gradient_noise: variance of one batch's gradient over its squared mean above which it is noted.

    Raises:
        UserInputError: for a number that is not positive where it must be.

    Example:
        >>> Thresholds(dead=0.9).dead
        0.9
    """

    window: int = 25
    confirm: int = 2
    start: int = 5
    min_steps: int = 100
    planned_share: float = 0.3
    max_wait: int = 1000
    significance: float = 3.0
    least_gain: float = 0.02
    barely: float = 0.95
    slow: float = 0.7
    above_guess: float = 1.2
    rise: float = 0.5
    rise_noise: float = 6.0
    lost: float = 0.8
    lost_gain: float = 0.3
    swing: float = -0.5
    swing_size: float = 0.1
    swing_growth: float = 5.0
    hump: float = 0.2
    stalled_level: float = 0.5
    high_ratio: float = 0.05
    high_first_ratio: float = 0.5
    low_ratio: float = 1e-5
    vanishing: float = 1e-4
    vanishing_total: float = 1e-7
    exploding: float = 100.0
    exploding_depth: float = 100.0
    dead: float = 0.5
    saturated: float = 0.5
    clipped_share: float = 0.9
    clipped_records: int = 8
    clipped_factor: float = 0.1
    overfit_rise: float = 0.1
    overfit_lost: float = 0.3
    overfit_gap: float = 0.5
    overfit_checks: int = 3
    stagnant_share: float = 0.5
    stagnant_steps: int = 500
    gradient_noise: float = 1000.0

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if name != "swing" and not value > 0:
                raise UserInputError(f"{name} must be greater than 0, but got {value}.")
        if self.window < 2 * self.start:
            raise UserInputError(
                f"window must be at least 2 * start = {2 * self.start} steps, but got {self.window}. Raise window."
            )
