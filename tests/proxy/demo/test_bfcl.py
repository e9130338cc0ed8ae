import copy

import pytest

from asynclm.adapters.tools.toolbox import Toolbox
from asynclm.cml.body import parse_body
from asynclm.cml.tools import ToolSpec
from asynclm.proxy.demo import bfcl
from asynclm.proxy.demo.bfcl import Sample, World, as_json, draw_cases, load_samples, state_difference, tool_specs


class Described:
    """A tool that is only described."""

    def __init__(self, spec: ToolSpec) -> None:
        self.spec = spec

    async def run(self, arguments: dict[str, object]) -> object:
        raise AssertionError("not run here")


SAMPLES = load_samples()


def test_the_samples_are_the_datasets_first_rounds() -> None:
    assert len(SAMPLES) == 100
    assert len(load_samples(1, 5)) == 198
    first = SAMPLES[0]
    assert first.id == "multi_turn_base_0"
    assert first.calls == (
        "cd(folder='document')",
        "mkdir(dir_name='temp')",
        "mv(source='final_report.pdf', destination='temp')",
    )
    assert first.question.startswith("Move 'final_report.pdf' within document directory")
    assert first.classes == ("TwitterAPI", "GorillaFileSystem")
    assert first.excluded == ("cp",)


@pytest.mark.parametrize("sample", SAMPLES, ids=[sample.id for sample in SAMPLES])
def test_a_samples_ground_truth_runs_through_its_documented_tools(sample: Sample) -> None:
    before = copy.deepcopy(sample.initial_config)
    truth, world = World([sample]), World([sample])
    expected = truth.run(sample.calls)
    assert not any(isinstance(value, dict) and "error" in value for value in expected)
    toolbox = Toolbox([Described(spec) for spec in tool_specs(sample)])
    found = []
    for body in sample.calls:
        spec, arguments = toolbox.check(parse_body(body))
        found.append(as_json(world.call(spec.name, **arguments)))
    assert found == expected
    assert state_difference(world, truth) is None
    assert sample.initial_config == before


def test_a_difference_in_state_is_seen() -> None:
    truth, world = World([SAMPLES[0]]), World([SAMPLES[0]])
    truth.run(SAMPLES[0].calls)
    world.run(SAMPLES[0].calls[:-1])
    difference = state_difference(world, truth)
    assert difference is not None
    assert "GorillaFileSystem" in difference


def test_cases_join_three_samples_without_a_common_class_and_are_the_same_for_a_seed() -> None:
    cases = draw_cases(SAMPLES, 200, seed=1)
    assert cases == draw_cases(SAMPLES, 200, seed=1)
    assert cases != draw_cases(SAMPLES, 200, seed=2)
    assert cases[:5] == draw_cases(SAMPLES, 5, seed=1)
    for case in cases:
        classes = [name for sample in case.samples for name in sample.classes]
        assert len(case.samples) == 3
        assert len(set(classes)) == len(classes)
        names = [spec.name for sample in case.samples for spec in tool_specs(sample)]
        assert len(set(names)) == len(names)
    assert len({frozenset(sample.id for sample in case.samples) for case in cases}) == 200


def test_more_cases_than_there_are() -> None:
    with pytest.raises(ValueError, match="only 0 different cases"):
        draw_cases(SAMPLES[:2], 1, seed=0)


def test_a_missing_dataset_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bfcl.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(bfcl.MissingDatasetError, match="pip install --no-deps 'bfcl-eval"):
        load_samples()
