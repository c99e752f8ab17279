"""Reasoning is told from the response in every form models and sources use, and no text is lost."""

import time

import pytest

from pipelines.reasoning import THINK, Reasoning, join_columns, split_reasoning


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The answer is 5.", Reasoning(None, "The answer is 5.", "none")),
        ("", Reasoning(None, "", "none")),
        ("<think>\nadd\n</think>\n\n5", Reasoning("add", "5", "tags")),
        ("<think>add</think>5", Reasoning("add", "5", "tags")),
        ("<think>\n\n</think>\n\n5", Reasoning("", "5", "tags")),
        ("<think>\nadd, so 5.</think>The answer is 5.", Reasoning("add, so 5.", "The answer is 5.", "tags")),
        ("add\n</think>\n\n5", Reasoning("add", "5", "opened")),
        ("add so 5</think>5", Reasoning("add so 5", "5", "opened")),
        ("<think>\nadd, then", Reasoning("add, then", "", "truncated")),
        ("<think>", Reasoning("", "", "truncated")),
        ("<think>\n<think>\nadd\n</think>\n5", Reasoning("add", "5", "doubled")),
        ("<think>a</think>\n\n<think>\nb\n</think>\n5", Reasoning("a\n\n\nb", "5", "doubled")),
        ("<think>a</think><think>b</think>5", Reasoning("ab", "5", "doubled")),
        ("<think>\na\n</think>\nso far\n</think>\n5", Reasoning("a\n\nso far", "5", "doubled")),
        ("<think>\na\n</think>\n5\n</think>", Reasoning("a", "5", "doubled")),
        ("Sure.\n<think>\nadd\n</think>\n5", Reasoning("Sure.\n\nadd", "5", "tags")),
        ("Sure. <think>\nadd\n</think>\n5", Reasoning("Sure. \nadd", "5", "tags")),
        (
            "<|begin_of_thought|>\n\nadd\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\n5\n\n<|end_of_solution|>",
            Reasoning("add", "5", "delimiter"),
        ),
        ("<reasoning>\nadd\n</reasoning>\n<answer>5</answer>", Reasoning("add", "<answer>5</answer>", "delimiter")),
        ("<thinking>add</thinking>5", Reasoning("add", "5", "delimiter")),
        ("<|begin_of_thought|>add, then", Reasoning("add, then", "", "truncated")),
        (
            "<|channel|>analysis<|message|>add<|end|><|start|>assistant<|channel|>final<|message|>5<|return|>",
            Reasoning("add", "5", "delimiter"),
        ),
        ("<|channel|>analysis<|message|>add, th", Reasoning("add, th", "", "truncated")),
        ("Work.\n\n**Final Answer**\n\\boxed{5}", Reasoning(None, "Work.\n\n**Final Answer**\n\\boxed{5}", "none")),
    ],
)
def test_forms(text: str, expected: Reasoning) -> None:
    assert split_reasoning(text) == expected


@pytest.mark.parametrize(
    ("text", "response"),
    [
        ("<think>\nr\n</think>\nWrap it in <think> and </think> tags.", "Wrap it in <think> and </think> tags."),
        ("<think>\nr\n</think>\nThe tag </think> closes. 5", "The tag </think> closes. 5"),
        ("<think>\nr\n</think>\nIt begins with\n<think> and is 5.", "It begins with\n<think> and is 5."),
        ("<think>r</think>The tag `</think>`\ncloses; 5", "The tag `</think>`\ncloses; 5"),
        ("HTML has no <think> element.", "HTML has no <think> element."),
        ("Quote it: `<think>`\nand `</think>`\nare tags.", "Quote it: `<think>`\nand `</think>`\nare tags."),
    ],
)
def test_an_answer_that_mentions_a_tag_keeps_its_text(text: str, response: str) -> None:
    assert split_reasoning(text).response == response


def test_reasoning_that_mentions_the_closing_tag_goes_on() -> None:
    text = "<think>\nI shall write </think> and then the answer.\nIt is 5.\n</think>\n5"
    assert split_reasoning(text) == ("I shall write </think> and then the answer.\nIt is 5.", "5", "tags")


def test_opened_in_the_prompt() -> None:
    assert split_reasoning("add, then", opened=True) == ("add, then", "", "truncated")
    assert split_reasoning("add\n</think>\n5", opened=True) == ("add", "5", "opened")
    # A sampler that puts the prompt's tag back in has written it once, not twice.
    assert split_reasoning("<think>\nadd\n</think>\n5", opened=True) == ("add", "5", "tags")


def test_a_late_block_is_cut_off_only_where_the_length_ran_out() -> None:
    text = "<think>a</think>\n5\n<think>\nbut wait"
    assert split_reasoning(text, finish_reason="length") == ("a\n5\n\nbut wait", "", "truncated")
    assert split_reasoning(text, finish_reason="stop") == ("a", "5\n<think>\nbut wait", "tags")


def test_expected_delimiters_are_the_plain_form() -> None:
    pair = ("<reasoning>", "</reasoning>")
    assert split_reasoning("<reasoning>a</reasoning>5", delimiters=pair) == ("a", "5", "tags")
    assert split_reasoning("<think>a</think>5", delimiters=pair) == ("a", "5", "delimiter")


def test_columns() -> None:
    assert join_columns("add\n", "5") == ("add", "5", "column")
    assert join_columns("<think>\nadd\n</think>", "5") == ("add", "5", "column")
    assert join_columns("add", "<think>\nadd\n</think>\n5") == ("add", "5", "doubled")
    assert join_columns("add", "<think>\nmore\n</think>\n5") == ("add\n\nmore", "5", "doubled")


@pytest.mark.parametrize("unit", ["<think>", "</think>", "<think>\n</think>\n", "x</think>x\n", "   <think> "])
def test_no_letter_is_lost_and_the_scan_is_linear(unit: str) -> None:
    text = unit * 20_000
    started = time.process_time()
    split = split_reasoning(text)
    assert time.process_time() - started < 10  # quadratic would take minutes
    kept = (split.reasoning or "") + split.response
    for tag in THINK:
        text, kept = text.replace(tag, ""), kept.replace(tag, "")
    assert "".join(kept.split()) == "".join(text.split())
