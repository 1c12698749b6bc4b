"""The rules of training: each looks at the evidence of one moment and returns one finding or none."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence

from lightning_tricks.diagnosis._curve import LossCurve, alternation, noise_of
from lightning_tricks.diagnosis._evidence import Evidence, LayerActivity, NormRecord, falls, is_late
from lightning_tricks.diagnosis._finding import Finding, Severity
from lightning_tricks.diagnosis._thresholds import Thresholds

Rule = Callable[[Evidence, Thresholds], Finding | None]


def nonfinite(evidence: Evidence, t: Thresholds) -> Finding | None:
    """A NaN or infinity, with the layer in which it began."""
    curve, broken = evidence.curve, evidence.broken
    if broken is None and (curve is None or curve.first_nonfinite is None):
        return None
    where, what = "loss", "it is NaN or infinite"
    if broken is not None:
        step, where, quantity = broken
        what = f"the first {quantity} that is NaN or infinite came in step {step}"
    if curve is not None and curve.first_nonfinite is not None:
        what += f"; the loss is since step {curve.first_nonfinite}"
    cure = (
        "Look for log(0), 0/0 or the root of 0 there and in the loss, and at the inputs of that batch; "
        "if the gradient grew before, lower the learning rate or clip the gradient"
    )
    return _finding("nonfinite", "error", where, what, cure, evidence)


def exploding_gradient(evidence: Evidence, t: Thresholds) -> Finding | None:
    """Gradients that have grown since the start, or that grow from layer to layer, while the loss is bad."""
    records = [r for r in evidence.norms if not math.isnan(r.total_gradient)]
    symptom, is_broken = evidence.symptom, evidence.broken is not None
    if not records or not (symptom or is_broken):
        return None
    first = statistics.median(r.total_gradient for r in records[:3])
    last = max(records[-3:], key=lambda r: r.total_gradient)
    severity = _severity(evidence)
    cure = (
        "Initialise with init_weights(model), clip the gradient, lower the learning rate, or add normalisation layers"
    )
    if len(records) > 3 and (symptom.rising or symptom.lost or is_broken) and last.total_gradient > t.exploding * first:
        what = f"the norm of the gradient has grown from {first:.3g} to {last.total_gradient:.3g}, and {_why(evidence)}"
        return _finding("exploding-gradient", severity, "gradient", what, cure, evidence)
    depth = _growth_through_depth(evidence)
    if depth is not None and depth[0] > t.exploding_depth and (symptom.above or symptom.rising or is_broken):
        factor, name, of = depth
        what = f"{of} grow {factor:.3g}-fold through the layers, and {_why(evidence)}"
        return _finding("exploding-gradient", severity, name, what, cure, evidence)
    return None


def _growth_through_depth(evidence: Evidence) -> tuple[float, str, str] | None:
    """Return factor, layer and quantity of whatever grows most through the network at the beginning."""
    found = []
    known = _known(evidence.norms[0])
    if len(known) > 2 and known[-1][1] > 0:
        found.append((known[0][1] / known[-1][1], known[0][0], "gradients (backward)"))
    if evidence.activity:
        seen = [a for a in evidence.activity[0] if a.std > 0]
        if len(seen) > 2:
            found.append((seen[-1].std / seen[0].std, seen[-1].layer, "activations"))
    return max(found, default=None)


def vanishing_gradient(evidence: Evidence, t: Thresholds) -> Finding | None:
    """Layers whose gradient is next to nothing beside the others', while the loss is bad."""
    if not evidence.symptom.allows_alarms or len(evidence.norms) < 3:
        return None
    recent = evidence.norms[-3:]
    cure = (
        "Use ReLU-like activations with He initialisation (init_weights(model)), normalisation layers or residual "
        "connections"
    )
    if all(r.total_gradient < t.vanishing_total for r in recent):
        what = f"the norm of the whole gradient is {recent[-1].total_gradient:.2g}, and {_why(evidence)}"
        return _finding(
            "vanishing-gradient",
            _severity_in_time(evidence, t),
            "gradient",
            what,
            cure,
            evidence,
        )
    faint = [_faint(record, t) for record in recent]
    names = [name for name in faint[-1] if all(name in others for others in faint[:-1])]
    if not names:
        return None
    largest = max(value for _, value in _known(recent[-1]))
    what = (
        f"the gradient of {_count(names, 'layer')} ({_list(names)}) is {faint[-1][names[0]] / largest:.1g} of the "
        f"largest layer's, and {_why(evidence)}"
    )
    return _finding(
        "vanishing-gradient",
        _severity_in_time(evidence, t),
        names[0],
        what,
        cure,
        evidence,
    )


def _faint(record: NormRecord, t: Thresholds) -> dict[str, float]:
    """Return the layers with little gradient; none at all is not faded but cut off (dead units, weights of 0)."""
    known = _known(record)
    largest = max((value for _, value in known), default=0.0)
    return {name: value for name, value in known if 0 < value < t.vanishing * largest}


def dead_units(evidence: Evidence, t: Thresholds) -> Finding | None:
    """Rectifiers most of whose units never pass anything on, while the loss is bad."""
    found = _layers_over(evidence, t.dead, lambda a: a.dead)
    if not evidence.symptom.allows_alarms or not found:
        return None
    worst = max(found, key=lambda a: a.dead)
    what = (
        f"{worst.dead:.0%} of its units were active for no sample of the last batches "
        f"({_count(found, 'layer')} like this), and {_why(evidence)}"
    )
    cure = "Lower the learning rate, begin with biases at 0 (init_weights(model)), or use LeakyReLU, GELU or batch norm"
    return _finding("dead-units", _severity(evidence), worst.layer, what, cure, evidence)


def saturated_units(evidence: Evidence, t: Thresholds) -> Finding | None:
    """Hidden activations most of whose values are where the derivative vanishes, while the loss is bad."""
    found = _layers_over(evidence, t.saturated, lambda a: a.saturated)
    if not evidence.symptom.allows_alarms or not found:
        return None
    worst = max(found, key=lambda a: a.saturated)
    what = (
        f"{worst.saturated:.0%} of its values are saturated ({_count(found, 'layer')} like this), and {_why(evidence)}"
    )
    cure = "Standardise the inputs, initialise with Xavier (init_weights(model)), lower the learning rate, or use ReLU"
    return _finding("saturated-units", _severity(evidence), worst.layer, what, cure, evidence)


def _layers_over(evidence: Evidence, bound: float, share: Callable[[LayerActivity], float]) -> "list[LayerActivity]":
    """Return the hidden layers that are over a bound in each of the last two sampled batches."""
    if len(evidence.activity) < 2:
        return []
    before = {a.layer for a in evidence.activity[-2] if share(a) >= bound}
    return [a for a in evidence.activity[-1][:-1] if a.layer in before and share(a) >= bound]


def not_learning(evidence: Evidence, t: Thresholds) -> Finding | None:
    """A loss that has not fallen since the start, or not below what guessing gives."""
    symptom = evidence.symptom
    if not (symptom.stuck or symptom.barely) or symptom.rising:
        return None
    long_enough = evidence.step >= t.min_steps  # before, it is too short to tell
    severity: Severity = "error" if symptom.stuck and symptom.certain and long_enough else "warning"
    what = f"after {evidence.step} steps {symptom}"
    cure = (
        "Try to overfit 16 samples first (check(model, data, budget='full')): look whether inputs and labels belong "
        "together, whether the optimizer steps, and at the learning rate (lr_find)"
    )
    return _finding("not-learning", severity, "loss", what, cure, evidence)


def diverging(evidence: Evidence, t: Thresholds) -> Finding | None:
    """A loss far above where it began, or one that has lost what it had gained."""
    symptom, curve = evidence.symptom, evidence.curve
    if curve is not None and evidence.is_negated and curve.windows:
        what = f"what is minimised is the negative of a loss, which has grown from {-_start(evidence):.4g} to "
        cure = "Return the loss itself: the optimizer makes it small"
        return _finding("diverging", "error", "loss", f"{what}{-curve.level:.4g}", cure, evidence)
    if curve is None or not (symptom.rising or symptom.lost):
        return None
    best = curve.best
    least = math.nan if best is None else best.mean
    what = f"the loss is {symptom.level:.4g}; it began at {curve.start(t.start):.4g}, and the best was {least:.4g}"
    cure = "Lower the learning rate by a factor of 3 to 10, warm it up, or clip the gradient"
    severity: Severity = "error" if symptom.is_broken else "warning"
    return _finding("diverging", severity, "loss", what, cure, evidence)


def oscillating(evidence: Evidence, t: Thresholds) -> Finding | None:
    """Losses that go up and down far more than at the beginning, and do not fall."""
    what = _swing(evidence, t) or _hump(evidence, t)
    if what is None:
        return None
    cure = "Lower the learning rate (or the momentum), or use larger batches"
    return _finding("oscillating", "warning", "loss", what, cure, evidence)


def _swing(evidence: Evidence, t: Thresholds) -> str | None:
    curve = evidence.curve
    if curve is None or len(curve.windows) < 4 or falls(curve.windows, t):
        return None
    recent = curve.recent[-100:]
    start = abs(curve.start(t.start))
    middle, spread = statistics.median(recent), statistics.pstdev(recent)
    level = abs(middle)
    if not level or spread < t.swing_size * max(start if evidence.guess is None else evidence.guess, level):
        return None
    zigzag = alternation(recent)
    if zigzag < t.swing:
        return f"the loss goes up and down with every step (autocorrelation {zigzag:.2f}) about {middle:.4g}"
    beside = "their level"
    if min(recent) < 0:  # what may be negative passes through 0, so its level is nothing to compare with
        level, beside = start or math.inf, "the first"
    before, now = curve.noise / start if start else math.inf, noise_of(recent) / level
    if now > t.swing_growth * before and now > 0.5:
        return f"the losses of neighbouring steps differ by {now:.0%} of {beside}, at the start by {before:.0%}"
    return None


def _hump(evidence: Evidence, t: Thresholds) -> str | None:
    """Whether the loss has just risen again by a good part of all that there is to gain."""
    curve = evidence.curve
    if curve is None or len(curve.windows) < 4:
        return None
    best = min(curve.windows[:-2], key=lambda window: window.mean)
    reference = abs(curve.start(t.start) if evidence.guess is None else evidence.guess)
    rise = min(window.median for window in curve.windows[-2:]) - best.mean
    if not rise > max(t.hump * reference, t.significance * best.error):
        return None
    return f"the loss has risen again, from {best.mean:.4g} to {curve.level:.4g}"


def lr_too_high(evidence: Evidence, t: Thresholds) -> Finding | None:
    """Updates that are large beside the weights, while the loss is bad."""
    symptom = evidence.symptom
    ratios = [r.total_ratio for r in evidence.norms if math.isfinite(r.total_ratio)]
    swings = _swing(evidence, t) or _hump(evidence, t)
    grew = evidence.broken is not None and _grew(evidence)
    if not ratios or not (symptom or swings or grew):
        return None
    now, first = statistics.median(ratios[-5:]), max(ratios[:6])
    if not (now > t.high_ratio or first > t.high_first_ratio):
        return None
    seen = f"{now:.2g} (about 0.001 is usual)" if now > t.high_ratio else f"up to {first:.2g} in the first steps"
    why = _why(evidence) if symptom or grew else swings
    what = f"each update changes the weights by a share of {seen}, and {why}"
    cure = f"Lower the learning rate{_lr(evidence)} by a factor of 3 to 10, or let lr_find suggest one"
    severity: Severity = "error" if symptom.is_broken or grew else "warning"
    return _finding("lr-too-high", severity, "optimizer", what, cure, evidence)


def _grew(evidence: Evidence) -> bool:
    """Whether losses or gradients had grown before something became NaN."""
    losses = [] if evidence.curve is None else evidence.curve.recent
    if losses and evidence.curve is not None and max(losses[-5:]) > 3 * abs(evidence.curve.start(1)):
        return True
    norms = [r.total_gradient for r in evidence.norms if math.isfinite(r.total_gradient)]
    return len(norms) > 1 and norms[-1] > 10 * norms[0]


def lr_too_low(evidence: Evidence, t: Thresholds) -> Finding | None:
    """Updates that are tiny beside the weights, while the loss has hardly fallen."""
    symptom = evidence.symptom
    ratios = [r.total_ratio for r in evidence.norms[-3:] if math.isfinite(r.total_ratio)]
    if len(ratios) < 3 or not is_late(evidence, t) or max(ratios) > t.low_ratio:
        return None
    if not (_hardly_fell(evidence) or symptom.stalled):
        return None
    fell = f"the loss has only come from {_start(evidence):.4g} to {symptom.level:.4g}"
    what = f"each update changes the weights by a share of {ratios[-1]:.2g} (about 0.001 is usual), and {fell}"
    cure = f"Raise the learning rate{_lr(evidence)} by a factor of 10 or more, or let lr_find suggest one"
    severity: Severity = "error" if symptom.stuck and symptom.certain else "warning"
    return _finding("lr-too-low", severity, "optimizer", what, cure, evidence)


def _hardly_fell(evidence: Evidence) -> bool:
    """Whether the loss fell by less than a twentieth, from a start that was no better than guessing."""
    if evidence.curve is None or not evidence.curve.windows:
        return False
    start, level = _start(evidence), evidence.curve.level
    began_well = evidence.guess is not None and start < 0.8 * evidence.guess
    return not began_well and start - level < 0.05 * abs(start)


def overfitting(evidence: Evidence, t: Thresholds) -> Finding | None:
    """A validation loss that has risen for a while, while the training loss fell, or that is far above it."""
    curve, checks = evidence.curve, [(s, v) for s, v in evidence.validation if math.isfinite(v)]
    if curve is None or evidence.is_negated or len(checks) <= t.overfit_checks or not curve.windows:
        return None
    name = evidence.validation_name
    what = _risen(evidence, curve, checks, t) or _gap(evidence, curve, checks, t)
    if what is None:
        return None
    cure = f"EarlyStopping({name!r}) gives the best weights back; more data, augmentation, dropout or weight decay help"
    return _finding("overfitting", "warning", name, what, cure, evidence)


def _risen(evidence: Evidence, curve: LossCurve, checks: Sequence[tuple[int, float]], t: Thresholds) -> str | None:
    at = min(range(len(checks)), key=lambda i: checks[i][1])
    step, best = checks[at]
    since = checks[at + 1 :]
    then = [w for w in curve.windows if w.end <= step][-1:] or curve.windows[:1]
    bound = best + max(t.overfit_rise * abs(best), t.overfit_lost * (checks[0][1] - best))
    if len(since) < t.overfit_checks or any(v <= bound for _, v in since[-t.overfit_checks :]):
        return None
    fall = then[0].median - curve.level
    if fall < max(t.significance * then[0].error, t.overfit_rise * abs(then[0].median)):
        return None
    return (
        f"{evidence.validation_name} has risen from {best:.4g} (step {step}) to {since[-1][1]:.4g}, while the training "
        f"loss fell from {then[0].median:.4g} to {curve.level:.4g}"
    )


def _gap(evidence: Evidence, curve: LossCurve, checks: Sequence[tuple[int, float]], t: Thresholds) -> str | None:
    """Whether most of what was learned holds for the training samples only; needs losses of the same kind."""
    guess = evidence.guess
    if guess is None or not is_late(evidence, t) or not 0 < checks[0][1] < 3 * guess:
        return None
    least = min(value for _, value in checks)
    if least - curve.level < t.overfit_gap * guess:
        return None
    return (
        f"{evidence.validation_name} was never below {least:.4g}, the training loss is {curve.level:.4g}, and "
        f"guessing gives {guess:.4g}"
    )


def stagnation(evidence: Evidence, t: Thresholds) -> Finding | None:
    """A loss that fell and has not become better for a long time."""
    curve, symptom = evidence.curve, evidence.symptom
    if curve is None or len(curve.windows) < 8 or symptom.stuck or symptom.rising or symptom.lost:
        return None
    since = [w for w in curve.windows if w.end > evidence.step * (1 - t.stagnant_share)]
    before = [w for w in curve.windows if w not in since]
    if not before or evidence.step * t.stagnant_share < t.stagnant_steps or falls(curve.windows, t):
        return None
    least = min(w.mean for w in before)
    if min(w.mean for w in since) < least - max(t.least_gain * abs(least), 2 * before[-1].error):
        return None
    severity: Severity = "warning" if symptom.stalled else "info"
    what = f"the loss has not become better than {least:.4g} for the last {evidence.step * t.stagnant_share:.0f} steps"
    cure = "Lower the learning rate on a plateau (ReduceLROnPlateau), stop early, or enlarge the model"
    return _finding("stagnation", severity, "loss", what, cure, evidence)


def clipping_binds(evidence: Evidence, t: Thresholds) -> Finding | None:
    """Clipping in nearly every step: the learning rate is not the one that was set."""
    factors = [r.clip_factor for r in evidence.norms if math.isfinite(r.clip_factor)]
    if len(factors) < t.clipped_records:
        return None
    bound = [factor for factor in factors if factor < 1 - 1e-6]
    if len(bound) < t.clipped_share * len(factors):
        return None
    middle = statistics.median(bound)
    severity: Severity = "warning" if middle < t.clipped_factor else "info"
    norms = [r.total_gradient for r in evidence.norms if math.isfinite(r.total_gradient)]
    high = sorted(norms)[math.ceil(0.9 * (len(norms) - 1))]
    what = f"clipping bound in {len(bound)} of {len(factors)} measured steps, by a factor of {middle:.2g} in the median"
    cure = f"Clip at the 90 % quantile of the norm before clipping ({high:.2g}), and lower the learning rate instead"
    return _finding("clipping-binds", severity, "gradient", what, cure, evidence)


def gradient_noise(evidence: Evidence, t: Thresholds) -> Finding | None:
    """Gradients of single batches that are mostly noise."""
    ratio = evidence.noise_ratio
    if ratio is None or ratio < t.gradient_noise:
        return None
    what = f"the variance of one batch's gradient is {ratio:.3g} times its squared mean"
    cure = "Late in a run that is usual; a larger batch, accumulation, or a lower learning rate averages it out"
    return _finding("gradient-noise", "info", "gradient", what, cure, evidence)


TRAINING_RULES: Mapping[str, Rule] = {
    "nonfinite": nonfinite,
    "exploding-gradient": exploding_gradient,
    "vanishing-gradient": vanishing_gradient,
    "dead-units": dead_units,
    "saturated-units": saturated_units,
    "lr-too-high": lr_too_high,
    "lr-too-low": lr_too_low,
    "diverging": diverging,
    "oscillating": oscillating,
    "not-learning": not_learning,
    "overfitting": overfitting,
    "stagnation": stagnation,
    "clipping-binds": clipping_binds,
    "gradient-noise": gradient_noise,
}


def _finding(rule: str, severity: Severity, where: str, what: str, cure: str, evidence: Evidence) -> Finding:
    return Finding(rule, severity, where, what, cure + ".", step=evidence.step)


def _severity(evidence: Evidence) -> Severity:
    return "error" if evidence.symptom.is_broken or evidence.broken is not None else "warning"


def _severity_in_time(evidence: Evidence, t: Thresholds) -> Severity:
    """Return the severity of what needs some steps to be told; before them it is no error."""
    return _severity(evidence) if evidence.step >= t.min_steps else "warning"


def _why(evidence: Evidence) -> str:
    return "there are values that are NaN or infinite" if evidence.broken is not None else str(evidence.symptom)


def _known(record: NormRecord) -> list[tuple[str, float]]:
    pairs = zip(record.layers, record.gradients, strict=True)
    return [(name, value) for name, value in pairs if math.isfinite(value)]


def _start(evidence: Evidence) -> float:
    return math.nan if evidence.curve is None else evidence.curve.start()


def _lr(evidence: Evidence) -> str:
    return "" if evidence.lr is None else f" ({evidence.lr:.2g} now)"


def _count(things: Sequence[object], word: str) -> str:
    return f"{len(things)} {word}{'' if len(things) == 1 else 's'}"


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
