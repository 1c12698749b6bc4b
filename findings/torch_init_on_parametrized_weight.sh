#!/usr/bin/env bash
# torch 2.13.0: torch.nn.init on the weight of a parametrized layer (weight_norm, orthogonal, spectral_norm of
# torch.nn.utils.parametrizations) has no effect and says nothing: `layer.weight` is computed anew at each access, so the in-place
# initialisation goes to a tensor that is thrown away.
# Seen: "weight_norm: weight changed: False" and the same for the two others.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy
"$work/venv/bin/python" - <<'PY'
import warnings

import torch
from torch import nn
from torch.nn.utils import parametrizations

warnings.simplefilter("error")
for name in ("weight_norm", "orthogonal", "spectral_norm"):
    layer = getattr(parametrizations, name)(nn.Linear(4, 4)).eval()
    before = layer.weight.detach().clone()
    nn.init.constant_(layer.weight, 7.0)
    changed = not torch.equal(layer.weight.detach(), before)
    print(f"{name}: weight changed: {changed}")
    assert not changed, "no longer so"
PY
