#!/usr/bin/env bash
# scikit-learn 1.9.1: StratifiedGroupKFold can return a fold without any test row although there are as many groups as folds,
# and gives neither an error nor a warning. A model "validated" on that fold fails later, or its mean is over nothing.
# Seen: "test rows per fold: [3, 2, 0, 9, 7]" for five groups of 3, 5, 2, 2 and 9 rows, each of one class.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet scikit-learn==1.9.1 numpy
"$work/venv/bin/python" - <<'PY'
import warnings

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

warnings.simplefilter("error")
groups = np.repeat([0, 1, 2, 3, 4], [3, 5, 2, 2, 9])
y = (groups != 1).astype(int)
folds = StratifiedGroupKFold(5, shuffle=True, random_state=0).split(np.zeros(len(groups)), y, groups)
rows = [len(test) for _, test in folds]
print(f"test rows per fold: {rows}")
assert 0 in rows, "no longer so"
PY
