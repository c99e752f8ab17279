"""Ids depend on content alone; problems that differ in a number are different problems."""

import pytest

from pipelines import tables


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("What is 2+2?", "  What\tis \n 2+2? ", True),
        ("caf\u00e9", "cafe\u0301", True),  # composed and decomposed
        ("What is 2+2?", "What is 2+3?", False),
        ("Find a", "Find A", False),  # letters name variables
        ("x²", "x2", False),  # compatibility forms stay apart
    ],
)
def test_prompt_ids(one: str, other: str, same: bool):
    assert (tables.prompt_id(one) == tables.prompt_id(other)) is same


def test_options_belong_to_a_problem():
    assert tables.prompt_id("Pick", ["1", "2"]) != tables.prompt_id("Pick", ["2", "1"])
    assert tables.prompt_id("Pick", ["1"]) != tables.prompt_id("Pick")


def test_rollout_ids_depend_on_all_their_parts():
    base = tables.rollout_id("p", "m", {"temperature": 0.6}, 0)
    assert base == tables.rollout_id("p", "m", {"temperature": 0.6}, 0)
    others = [
        tables.rollout_id("q", "m", {"temperature": 0.6}, 0),
        tables.rollout_id("p", "n", {"temperature": 0.6}, 0),
        tables.rollout_id("p", "m", {"temperature": 0.7}, 0),
        tables.rollout_id("p", "m", {"temperature": 0.6}, 1),
    ]
    assert len({base, *others}) == 5


def test_half_a_surrogate_has_an_id():
    assert len(tables.prompt_id("\ud83d")) == 24
