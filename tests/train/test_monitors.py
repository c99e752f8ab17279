import pytest

from pipelines.errors import UserError
from train.grpo import heed
from train.monitors import Finding, Monitor, MonitorConfig

CALM = {
    "truncation_rate": 0.0,
    "groups_used": 6.0,
    "groups_all_wrong": 1.0,
    "groups_all_correct": 1.0,
    "groups_too_easy": 0.0,
    "groups_unjudged": 0.0,
    "entropy": 0.4,
    "kl": 0.01,
    "length_mean": 100.0,
    "grad_norm": 0.5,
}


def found(monitor: Monitor, times: int = 1, **changed: float) -> list[Finding]:
    return [finding for _ in range(times) for finding in monitor.look({**CALM, **changed})]


def test_a_calm_run_says_nothing():
    assert found(Monitor(MonitorConfig()), times=20) == []


@pytest.mark.parametrize(
    ("watch", "changed"),
    [
        ("truncation", {"truncation_rate": 0.5}),
        ("no_signal", {"groups_used": 1.0, "groups_all_wrong": 30.0}),
        ("entropy", {"entropy": 0.001}),
        ("kl", {"kl": 2.0}),
        ("length", {"length_mean": 300.0}),
        ("grad_norm", {"grad_norm": 50.0}),
    ],
)
def test_a_limit_that_is_crossed_is_told_once_until_it_is_kept_again(watch: str, changed: dict):
    monitor = Monitor(MonitorConfig())
    found(monitor, times=5)
    assert [finding.watch for finding in found(monitor, times=5, **changed)] == [watch]
    assert found(monitor, times=1, **changed) == []
    assert found(monitor, times=6) == []
    assert [finding.watch for finding in found(monitor, times=5, **changed)] == [watch]


def test_the_words_name_the_mean_of_the_last_steps():
    monitor = Monitor(MonitorConfig(max_truncation=0.9))
    (finding,) = found(monitor, times=5, truncation_rate=0.95)
    assert finding.words == "95% of the rollouts are cut off at `max_tokens` (limit 90%)"


def test_the_course_tells_what_moved_over_a_run_that_was_resumed():
    rows = [
        {**CALM, "reward": -0.9 + 0.1 * step, "truncation_rate": 0.1 if step < 5 else 0.0, "length_mean": 100.0 + step}
        for step in range(10)
    ]
    rows[-1]["reward_hard"] = -0.5
    monitor = Monitor(MonitorConfig(), rows[:7])
    for row in rows[7:]:
        assert list(monitor.look(row)) == []
    assert monitor.course() == (
        "reward -0.70 -> -0.20, length 102 -> 107 tokens, entropy 0.400 -> 0.400 nats a token, truncated 10.0% -> 0.0%"
    )
    assert Monitor(MonitorConfig(), rows[:2]).course().startswith("reward -0.90 -> -0.80, length 100 -> 101 tokens")
    for row in rows:
        row["reward_hard"] = -1.0
    assert ", of hard prompts -1.00 -> -1.00, " in Monitor(MonitorConfig(), rows).course()


def test_what_stop_on_names_ends_the_run():
    findings = found(Monitor(MonitorConfig()), kl=2.0)
    heed(findings, (), 0)
    with pytest.raises(UserError, match=r"step 1: the policy is 2 nats a token from where it started"):
        heed(findings, ("kl",), 0)
