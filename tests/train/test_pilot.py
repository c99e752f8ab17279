import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripted_policy import ScriptedPolicy, sum_prompts

from pipelines import parquet
from pipelines.errors import UserError
from train.pilot import PilotConfig, Trial, pilot
from verifiers import VerifierPool

CONFIG = PilotConfig(pilot=True, pilot_rounds=2, pilot_samples=4, max_tokens=64)
RIGHT = [rf"\boxed{{{index + 1}}}" for index in range(5)]
WRONG = r"\boxed{-7}"
TEXTS: dict[str, list[str | None]] = {
    "0 + 1": [RIGHT[0], WRONG],
    "1 + 1": [RIGHT[1], "so " * 20 + RIGHT[1]],  # lengths of 9 and 69 tokens
    "2 + 1": [WRONG],
    "3 + 1": [RIGHT[3]],
    "4 + 1": [None],
}


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(num_workers=1) as pool:
        yield pool


def kept(sampler: ScriptedPolicy, pool: VerifierPool, out: Path, **settings) -> dict[str, float | None]:
    """Problem -> pass rate of the prompts that the pilot keeps."""
    config = CONFIG.model_copy(update=settings)
    prompts = pilot(sampler, pool, sum_prompts(5), config, out, threading.Event())
    return {prompt.messages[0]["content"]: prompt.pass_rate for prompt in prompts}


def stored(out: Path, table: str) -> list[dict]:
    return parquet.read_table(parquet.table_files(out / "pilot", table), table).to_pylist()


def test_prompts_of_even_length_are_kept_with_their_pass_rates(pool, tmp_path: Path, caplog):
    sampler = ScriptedPolicy(TEXTS)
    with caplog.at_level(logging.INFO, "train.pilot"):
        assert kept(sampler, pool, tmp_path) == {"0 + 1": 0.5, "2 + 1": 0.0, "3 + 1": 1.0}
    ids = {prompt.messages[0]["content"]: prompt.prompt_id for prompt in sum_prompts(5)}
    refusals = {row["id"]: row["refusal"] for row in stored(tmp_path, "selections/split")}
    assert refusals == {ids["0 + 1"]: None, ids["1 + 1"]: "uneven_lengths", ids["2 + 1"]: None} | {
        ids["3 + 1"]: None,
        ids["4 + 1"]: "no_rollouts",
    }
    asked = [request.messages[0]["content"] for request, _ in sampler.asked]
    assert asked.count("0 + 1") == 8
    assert asked.count("1 + 1") == 4, "uneven after the first round, not asked in the second"
    assert {config.temperature for _, config in sampler.asked} == {1.0}
    assert len(stored(tmp_path, "rollouts")) == len(stored(tmp_path, "verdicts")) == 8 + 4 + 8 + 8
    assert (tmp_path / "pilot" / "lengths.png").stat().st_size > 1000
    assert "the sampler refused 4 of 20 (9000 prompt tokens)" in caplog.text
    table = [line.split() for line in caplog.text.splitlines()]
    assert ["kept", "3", "24", "1.000", "0.500"] in table
    assert ["uneven_lengths", "1", "4", "7.667", "1.000"] in table


def test_a_band_of_pass_rates_refuses_what_is_too_hard_or_too_easy(pool, tmp_path: Path):
    rates = (0.1, 0.9)
    assert kept(ScriptedPolicy(TEXTS), pool, tmp_path, pilot_pass_rates=rates, max_length_ratio=10.0) == {"0 + 1": 0.5}
    refusals = sorted(str(row["refusal"]) for row in stored(tmp_path, "selections/split"))
    assert refusals == ["None", "no_rollouts", "pass_rate_high", "pass_rate_high", "pass_rate_low"]


def test_a_pilot_that_was_told_to_stop_goes_on_with_what_is_missing(pool, tmp_path: Path):
    stop = threading.Event()

    class Told(ScriptedPolicy):
        """Is told to stop while it answers its third prompt."""

        def sample(self, requests, config, *, logprobs=False):
            for number, result in enumerate(super().sample(requests, config, logprobs=logprobs)):
                if number == 10:
                    stop.set()
                yield result

    texts = {**TEXTS, "4 + 1": [RIGHT[4]]}
    with pytest.raises(UserError, match="told to stop in its pilot"):
        pilot(Told(texts), pool, sum_prompts(5), CONFIG, tmp_path, stop)
    first = {row["rollout_id"] for row in stored(tmp_path, "verdicts")}
    assert 0 < len(first) < 20
    # A kill between the two files of a batch leaves rollouts without verdicts: they are sampled again.
    left = tmp_path / "pilot" / "rollouts" / "00001.parquet"
    left.write_bytes((tmp_path / "pilot" / "rollouts" / "00000.parquet").read_bytes())
    second = ScriptedPolicy(texts)
    assert set(kept(second, pool, tmp_path)) >= {"2 + 1", "3 + 1", "4 + 1"}
    assert not first & {request.id for request, _ in second.asked}, "nothing is sampled twice"
    ids = [row["rollout_id"] for row in stored(tmp_path, "rollouts")]
    assert len(ids) == len(set(ids))
    third = ScriptedPolicy(texts)
    kept(third, pool, tmp_path)
    assert third.asked == [], "a finished pilot is read"


@pytest.mark.parametrize("rates", [(0.9, 0.1), (-0.1, 1.0), (0.0, 1.5)])
def test_pass_rates_that_nothing_can_have_are_refused(rates: tuple[float, float]):
    with pytest.raises(UserError, match="the lower one first"):
        PilotConfig.parse({"pilot_pass_rates": rates}, "rl")


def test_where_nothing_is_kept_the_counts_are_told(pool, tmp_path: Path):
    sampler = ScriptedPolicy({problem: ["so it is " * 20, "it is"] for problem in TEXTS})
    with pytest.raises(UserError, match="keeps none of 5 prompts: 5 uneven_lengths") as error:
        kept(sampler, pool, tmp_path)
    assert "max_length_ratio" in error.value.hint


def test_the_ratio_is_that_of_the_interpolated_ninth_and_first_tenth():
    # Of 10, 20, ..., 110 the tenth is 20, the ninetieth part 100.
    assert Trial(lengths=list(range(10, 111, 10))).length_ratio == pytest.approx(5.0)
    assert Trial(lengths=[7]).length_ratio == 1.0
    assert Trial(lengths=[5, 5], rewards=[]).refusal(CONFIG) == "unjudged"
