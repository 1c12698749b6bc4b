"""What a newcomer pastes from the README works."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.filterwarnings("ignore:.*smaller than the logging interval")
def test_the_code_blocks_run_in_order(capsys):
    assert len(BLOCKS) >= 3
    namespace = {}
    for block in BLOCKS:
        exec(block.replace("max_epochs=100", "max_epochs=2"), namespace)
    shown = capsys.readouterr().out
    assert "test_acc" in shown
    assert "tensor" in shown


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", README.read_text(encoding="utf-8")):
        assert (README.parent / target).exists(), f"README links to {target}, which does not exist"
