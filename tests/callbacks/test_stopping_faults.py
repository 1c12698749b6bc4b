"""Every known fault of the usual classes: theirs still has it, ours does not."""

import pytest
from fault_scenarios import FAULTS


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.run.__name__)
def test_fault(fault):
    theirs, ours, right = fault.run()
    assert ours == right
    assert theirs != right, "the peer is mended: say so on the page of peers"
