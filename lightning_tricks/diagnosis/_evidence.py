"""What the rules of training look at: plain numbers, gathered by whoever trains."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from lightning_tricks.diagnosis._curve import LossCurve, Window
from lightning_tricks.diagnosis._thresholds import Thresholds


@dataclass(frozen=True)
class NormRecord:
    """Norms of one optimizer step; a number that is not known is NaN.

    Attributes:
        step: optimizer steps before it.
        layers: names, in forward order.
        gradients: root mean square of each layer's gradient, before clipping.
        ratios: norm of each layer's update over the norm of its weights.
        total_gradient: norm of the whole gradient, before clipping.
        total_ratio: norm of the whole update over the norm of all weights.
        clip_factor: norm of the gradient after clipping over the one before; 1 where clipping does not bind.
    """

    step: int
    layers: Sequence[str]
    gradients: Sequence[float]
    ratios: Sequence[float]
    total_gradient: float
    total_ratio: float
    clip_factor: float = 1.0


@dataclass(frozen=True)
class LayerActivity:
    """One layer's outputs in one sampled batch; a share that does not apply is NaN."""

    layer: str
    kind: str
    std: float
    saturated: float
    dead: float


@dataclass
class Evidence:
    """All that is known at one look.

    Attributes:
        step: optimizer steps so far.
        curve: the training loss; None where it means nothing (several optimizers).
        planned: optimizer steps of the whole run, if that is known.
        guess: loss of the best constant prediction, if that is known.
        is_negated: whether the training loss is the negative of a loss function.
        lr: largest learning rate, if that is known.
        norms: records, the oldest first.
        activity: layers in forward order for each sampled batch, the oldest first.
        validation: (step, loss) of each validation so far; empty without one.
        validation_name: of that loss.
        broken: step, layer and quantity of the first NaN or infinity.
        noise_ratio: variance of one batch's gradient over its squared mean, if that is known.
        is_last: whether the run has ended.
    """

    step: int
    curve: LossCurve | None = None
    planned: int | None = None
    guess: float | None = None
    is_negated: bool = False
    lr: float | None = None
    norms: Sequence[NormRecord] = ()
    activity: Sequence[Sequence[LayerActivity]] = ()
    validation: Sequence[tuple[int, float]] = ()
    validation_name: str = "val_loss"
    broken: tuple[int, str, str] | None = None
    noise_ratio: float | None = None
    is_last: bool = False
    symptom: "Symptom" = field(default_factory=lambda: Symptom())


@dataclass(frozen=True)
class Symptom:
    """What the loss says; alarms about the inside of a network count only together with one.

    Attributes:
        stuck: it has not fallen since the start (or below what guessing gives) and does not fall now.
        certain: what guessing gives is known, and the loss is not below it: this is no model that had converged before.
        above: it is far above what guessing gives, well after the start.
        barely: it has fallen by next to nothing, and does not fall now.
        slow: it is well below what guessing gives, but not far; enough to look inside, and no reason to worry alone.
        stalled: it fell at first, and no longer does, far above zero.
        rising: it is far above where it began, and stays there.
        lost: nearly all that was gained is lost again.
        reference: what guessing gives, or else where the loss began.
        level: where it is now.
    """

    stuck: bool = False
    certain: bool = False
    above: bool = False
    barely: bool = False
    slow: bool = False
    stalled: bool = False
    rising: bool = False
    lost: bool = False
    reference: float = math.nan
    level: float = math.nan

    @property
    def is_broken(self) -> bool:
        """Whether the run surely does not work."""
        return self.lost or (self.rising and (self.worse or not self.certain)) or (self.certain and self._is_useless)

    @property
    def worse(self) -> bool:
        """Whether the loss is above the reference."""
        return self.level > self.reference

    @property
    def _is_useless(self) -> bool:
        return self.stuck or self.above

    def __bool__(self) -> bool:
        return self._is_useless or self.barely or self.stalled or self.rising or self.lost

    @property
    def allows_alarms(self) -> bool:
        """Whether what is strange inside the network may count."""
        return bool(self) or self.slow

    def __str__(self) -> str:
        beside = "what guessing gives" if self.certain else "the start"
        if self.rising or self.lost:
            return f"the loss has risen to {self.level:.4g}"
        if self.above:
            return f"the loss is {self.level:.4g}, above the {self.reference:.4g} that guessing gives"
        if self.stuck or self.barely:
            return f"the loss stays at {self.level:.4g} ({beside}: {self.reference:.4g})"
        if not self.stalled:
            return f"the loss is {self.level:.4g}, not far below the {self.reference:.4g} that guessing gives"
        return f"the loss no longer falls ({self.level:.4g})"


def symptom_of(evidence: Evidence, t: Thresholds) -> Symptom:
    """Tell from the loss alone whether a run is well.

    Example:
        >>> curve = LossCurve()
        >>> curve.add([2.31, 2.30] * 100)
        >>> symptom = symptom_of(Evidence(200, curve, planned=400, guess=2.302), Thresholds())
        >>> symptom.stuck, symptom.certain
        (True, True)
    """
    curve = evidence.curve
    if curve is None or len(curve.windows) < 2:
        return Symptom()
    start, guess, best = curve.start(t.start), evidence.guess, curve.best
    reference = start if guess is None else guess
    late = is_late(evidence, t)
    gained = _gained(curve, reference, t, is_guess=guess is not None)
    flat = late and not falls(curve.windows, t)
    stuck = flat and not gained
    barely = flat and gained and guess is not None and best is not None and best.mean > t.barely * guess
    above = late and guess is not None and _all_above(curve.windows[-2:], t.above_guess * guess)
    useless = gained and guess is not None and _all_above(curve.windows[-2:], guess * (1 + t.least_gain))
    half = len(curve.windows) // 2
    before, after = curve.windows[:half], curve.windows[half:]
    stalled = (
        gained
        and len(curve.windows) * t.window >= 2 * t.min_steps
        and half >= 2
        and not _fell(before, after, t)
        and curve.level > t.stalled_level * abs(reference)
    )
    return Symptom(
        stuck=stuck,
        certain=guess is not None,
        above=above,
        barely=barely,
        slow=late and guess is not None and curve.level > t.slow * guess,
        stalled=stalled,
        rising=_rises(curve, t, guess),
        lost=best is not None and (_lost(curve, best, start if guess is None else min(start, guess), t) or useless),
        reference=reference,
        level=curve.level,
    )


def is_late(evidence: Evidence, t: Thresholds) -> bool:
    """Whether a healthy run would have learned something by now."""
    wait = t.max_wait if evidence.planned is None else min(t.max_wait, t.planned_share * evidence.planned)
    return evidence.step >= max(t.min_steps, wait) or (evidence.is_last and evidence.step >= 0.75 * t.min_steps)


def _gained(curve: LossCurve, reference: float, t: Thresholds, *, is_guess: bool) -> bool:
    """Whether the loss was ever clearly below the reference, in windows or right now."""
    least = t.least_gain * abs(reference)
    if is_guess:
        late = curve.windows[len(curve.windows) // 2 :]  # together they tell what one noisy window cannot
        mean = statistics.fmean(w.mean for w in late)
        error = math.hypot(*(w.error for w in late)) / len(late)
        enough = (1 - t.barely) * abs(reference)  # in doubt it has learned something
        if mean < reference - max(least, min(t.significance * error, enough)):
            return True
        return any(w.mean < reference - max(least, t.significance * w.error) for w in curve.windows)
    first = curve.noise / math.sqrt(t.start)
    return any(
        w.median < reference - max(least, t.significance * math.hypot(first, 1.25 * w.error)) for w in curve.windows
    )


def falls(windows: Sequence[Window], t: Thresholds) -> bool:
    """Whether the last third of the run is clearly below the third before it; a bad start does not count."""
    third = max(1, len(windows) // 3)
    return _fell(windows[-2 * third : -third], windows[-third:], t)


def _fell(before: Sequence[Window], after: Sequence[Window], t: Thresholds) -> bool:
    if not before or not after:
        return True
    fall = statistics.median(w.median for w in before) - statistics.median(w.median for w in after)
    error = 1.25 * math.hypot(
        statistics.median(w.error for w in before) / math.sqrt(len(before)),
        statistics.median(w.error for w in after) / math.sqrt(len(after)),
    )
    return fall > max(t.significance * error, 0.25 * t.least_gain * abs(after[-1].median))


def _all_above(windows: Sequence[Window], bound: float) -> bool:
    return all(window.median > bound for window in windows)


def _rises(curve: LossCurve, t: Thresholds, guess: float | None) -> bool:
    if guess is None:
        bound = _above(curve.start(t.start), t.rise_noise * curve.noise, t)
    else:  # the first update may have ruined it, so the first loss counts, too, for as much as one noisy loss may
        bound = min(_above(curve.start(n), _doubt(curve, n, guess, t), t) for n in (1, t.start))
    return _all_above(curve.windows[-2:], bound) and not falls(curve.windows, t)


def _above(start: float, least: float, t: Thresholds) -> float:
    return start + max(t.rise * abs(start), least)


def _doubt(curve: LossCurve, count: int, guess: float, t: Thresholds) -> float:
    """Return how far above the first losses noise alone may put a loss; far above what guessing gives is no noise."""
    noise = t.significance * curve.windows[-1].noise / math.sqrt(count)
    return max(t.least_gain * guess, min(noise, t.above_guess * guess - curve.start(count)))


def _lost(curve: LossCurve, best: Window, reference: float, t: Thresholds) -> bool:
    """Whether most of what the best window had gained is gone; what noise gave was never gained."""
    gain = reference - best.mean
    noise = statistics.median(w.noise for w in curve.windows if w.end <= best.end)  # the best one's own may be small
    if not gain > max(t.lost_gain * abs(reference), t.rise_noise * noise / math.sqrt(best.count)):
        return False
    return curve.windows[-1] is not best and _all_above(curve.windows[-2:], best.mean + t.lost * gain)
