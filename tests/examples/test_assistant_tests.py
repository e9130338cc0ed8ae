"""The example of a test-suite on recordings, as a reader would run it: recorded, then served with no model in reach."""

import sys
from pathlib import Path

import pytest
from commands import ROOT, output_of

PYTEST = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "examples/test_assistant.py")
NEVER = "31536000000"  # milliseconds: a model that would not answer this year


def test_the_first_run_records_and_the_next_needs_no_model(tmp_path: Path) -> None:
    file = tmp_path / "recordings.jsonl"
    quick = {"RECORDINGS": str(file), "ASYNCLM_UPSTREAMS_SIMULATED_TTFT_MS": "0"}
    assert "2 passed" in output_of(*PYTEST, cwd=ROOT, **quick)
    recorded = file.read_bytes()
    assert recorded.count(b'"asynclm_recording":1') == 2
    unreachable = {**quick, "ASYNCLM_UPSTREAMS_SIMULATED_TTFT_MS": NEVER}
    assert "2 passed" in output_of(*PYTEST, cwd=ROOT, REPLAY="replay", **unreachable)
    assert "2 passed" in output_of(*PYTEST, cwd=ROOT, **unreachable)
    assert file.read_bytes() == recorded


def test_without_recordings_it_fails_and_says_why(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="there is no recording of this request"):
        output_of(*PYTEST, cwd=ROOT, REPLAY="replay", RECORDINGS=str(tmp_path / "none.jsonl"))
