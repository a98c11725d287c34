"""The records of the stages name existing things."""

from importlib import import_module
from typing import get_args

import pytest

from lr2ppo.config.schema import CONFIGS, CompareConfig, EvaluateConfig, StageName
from lr2ppo.evaluation.published import CURVES, PUBLISHED
from lr2ppo.models.weights import KINDS
from lr2ppo.report.figures import PANELS, SERIES
from lr2ppo.runs.stages import LR2PPO, STAGES, stage_for_model
from tests.conftest import REPOSITORY


@pytest.mark.parametrize("name", list(STAGES))
def test_all_that_a_stage_names_exists(name: str) -> None:
    stage = STAGES[name]
    assert callable(import_module(stage.module).train)
    assert (REPOSITORY / stage.script).is_file()
    assert get_args(stage.config.model_fields["stage"].annotation) == (name,)
    assert stage.model in KINDS
    assert set(stage.sources) <= set(stage.config.model_fields)
    earlier = set(list(STAGES)[: list(STAGES).index(name)])
    assert all(set(stages) <= earlier for stages in stage.sources.values())
    assert name not in LR2PPO or (CURVES / PUBLISHED[name].curve).is_file()
    assert PANELS[name]
    assert SERIES[stage.series]


def test_the_config_of_a_stage_is_that_of_its_name() -> None:
    others = {"evaluate": EvaluateConfig, "compare": CompareConfig}
    assert dict(CONFIGS) == {name: stage.config for name, stage in STAGES.items()} | others
    assert get_args(StageName) == tuple(STAGES)
    assert len({stage.series for stage in STAGES.values()}) == len(STAGES)


def test_a_model_belongs_to_the_named_stage_or_else_to_the_first_that_saves_it() -> None:
    assert stage_for_model("RelevanceRanker", "ppo").name == "ppo"
    assert stage_for_model("RelevanceRanker", "reward").name == "pointwise"
    assert stage_for_model("PartialOrderModel", "anything").name == "reward"
    with pytest.raises(LookupError, match="no stage saves a Linear"):
        stage_for_model("Linear", "ppo")
