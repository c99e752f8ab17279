"""What `curate generate` would do, and what it did."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class GeneratePlan:
    """What a run would do: `wanted == stored + refused + journalled + left`."""

    prompts: int
    wanted: int
    stored: int
    refused: int
    """Failed for ever in an earlier run; asked again with `retry_failed`."""
    journalled: int
    """Finished in an earlier run, not yet in Parquet."""
    left: int


@dataclass
class GenerateReport:
    """What a run did: `plan.left == sampled + refused by reason`."""

    teacher: str
    plan: GeneratePlan
    sampled: int = 0
    truncated: int = 0
    """Of the sampled: reached `max_tokens`."""
    refused: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    seconds: float = 0.0
    torn: int = 0
    """Lines of the journal that a kill had torn; set aside and sampled again."""

    def lines(self) -> list[str]:
        """The summary a command prints."""
        plan = self.plan
        if plan.left + plan.journalled == 0:
            refused = f", {plan.refused:,} refused before (--retry-failed asks again)" if plan.refused else ""
            return [f"{self.teacher}: nothing to do, {plan.stored:,} of {plan.wanted:,} rollouts are stored{refused}"]
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.refused.most_common())
        before = plan.stored + plan.refused + plan.journalled
        lines = [
            f"{self.teacher}: {plan.prompts:,} prompts, {plan.wanted:,} rollouts wanted = {before:,} before"
            f" + {self.sampled:,} sampled + {self.refused.total():,} refused{f' ({reasons})' if reasons else ''}",
            f"{self.truncated:,} truncated; {self.tokens:,} tokens in {self.seconds:.1f} s,"
            f" {self.tokens / max(self.seconds, 1e-9):,.0f} tokens/s",
        ]
        return lines + ([f"{self.torn} torn journal lines set aside"] if self.torn else [])
