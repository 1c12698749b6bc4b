#!/usr/bin/env bash
# lightning 2.6.6: precision="bf16-mixed" with gradient_clip_val refuses every fused optimizer ("does not allow for gradient clipping
# because it performs unscaling of gradients internally"), although bf16 has no gradient scaler and nothing is scaled;
# 32-true with the same optimizer clips.
# Seen: "32-true: trains" and "bf16-mixed: RuntimeError".
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 lightning==2.6.6 numpy
cd "$work"
"$work/venv/bin/python" - <<'PY'
import logging
import warnings

import lightning as L
import torch
from torch import nn

warnings.simplefilter("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), fused=True)


def outcome(precision):
    trainer = L.Trainer(
        precision=precision, gradient_clip_val=1.0, max_steps=1, accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )
    try:
        trainer.fit(Net(), torch.utils.data.DataLoader(torch.randn(8, 4), batch_size=4))
    except RuntimeError as error:
        assert "gradient clipping" in str(error)
        return "RuntimeError"
    return "trains"


seen = {precision: outcome(precision) for precision in ("32-true", "bf16-mixed")}
for precision, what in seen.items():
    print(f"{precision}: {what}")
assert seen == {"32-true": "trains", "bf16-mixed": "RuntimeError"}, "no longer so"
PY
