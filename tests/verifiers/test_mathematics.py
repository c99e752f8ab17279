r"""Mathematics: as many wrong answers as right ones, and dressing that must not matter."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verifiers import Outcome, Question, gold_fault
from verifiers.equality import same_answer
from verifiers.mathematics import verify

RIGHT = [
    # numbers
    ("0.5", r"\frac12"),
    ("-10/9", r"-\dfrac{10}{9}"),
    ("12000", r"12\,000"),
    ("12000", "12{,}000"),
    ("12,000", "12000.0"),
    ("1500", "1.5e3"),
    ("780", r"7.8 \times 10^{2}"),
    ("5/2", r"2\frac{1}{2}"),
    ("0.\\overline{3}", "1/3"),
    ("004", "4"),
    ("50%", "0.5"),
    (r"28\%", "28"),
    (r"\frac{1}{12}", "0.0833333333"),
    (r"\sqrt{17}", "4.123105625617661"),
    (r"\frac{1}{2^{99}}", "2^{-99}"),
    ("14-i", "14.0 - 1.0i"),
    # dressing
    ("5", r"x = 5"),
    (r"3\pi", r"\boxed{3\pi}"),
    (r"\$15.48", "15.48"),
    (r"12 \text{ gm}", "12"),
    ("90^\\circ", "90"),
    ("180°", r"\pi"),
    ("204_5", "204_{5}"),
    ("5 m", "5 m"),
    (r"5\text{ m}", r"500\text{ cm}"),
    (r"\text{even}", "Even"),
    (r"\text{(C)}", "C"),
    # expressions
    (r"\frac{\pi}{2}", "pi/2"),
    ("e^{16}-1", "-1 + exp(16)"),
    (r"\frac{x+2}{7}", r"\frac{x}{7}+\frac{2}{7}"),
    (r"\tan^2(y)+1", r"\sec^2 y"),
    (r"\frac{n!}{k!(n-k)!}", r"\binom{n}{k}"),
    ("f(x) = 2x+1", "1+2x"),
    ("x^2+y^2=1", "y^2 = 1 - x^2"),
    # structures
    ("1, -2", r"-2 \text{ and } 1"),
    (r"\pm 3", "-3, 3"),
    ("(1, 4.5)", r"\left(1, \frac{9}{2}\right)"),
    (r"(-\infty,1)\cup(2,\infty)", r"x<1 \text{ or } x>2"),
    ("x > 5", r"(5, \infty)"),
    ("x < 1", "-x > -1"),
    (r"x \in [-2,7]", r"-2 \le x \le 7"),
    (r"\{1\pm\sqrt{5},-2\}", r"\{-2, 1-\sqrt5, 1+\sqrt5\}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix} 1 \\ 4/2 \end{bmatrix}"),
    ("p=5,q=2;p=7,q=2", "(5,2),(7,2)"),
]

WRONG = [
    ("0.5", r"\frac13"),
    ("-10/9", r"\dfrac{10}{9}"),
    ("12000", r"12\,001"),
    ("12000", "12"),
    ("12,000", "(12, 0)"),
    ("1500", "1.5e4"),
    ("780", r"7.8 \times 10^{3}"),
    ("5/2", r"2 \cdot \frac{1}{2}"),
    ("0.\\overline{3}", "0.33"),
    ("004", "40"),
    ("50%", "0.05"),
    (r"28\%", "0.0028"),
    ("1e-7", "2e-7"),
    (r"\sqrt{17}", "4.123106625617661"),
    (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}"),
    (r"\frac{1}{2004!}", r"\frac{1}{2006!}"),
    (r"\frac{2^{2005}+1}{3\cdot2^{2006}}", r"\frac{1}{3\cdot2^{2006}}"),
    (r"3\pi", r"\boxed{3}"),
    (r"2\sqrt{3}", "2"),
    ("4", r"4\sqrt(2)"),
    (r"1-\frac1{\mathrm e}", r"1+\frac{1}{\mathrm{e}}"),
    ("90^\\circ", "80"),
    (r"101_2", "101_3"),
    (r"5\text{ cm}", r"5\text{ m}"),
    ("0.64N", "0.64"),
    (r"\text{even}", "odd"),
    (r"\text{(C)}", "B"),
    (r"\frac{\pi}{2}", "pi/3"),
    ("e^{16}-1", "-1 - exp(16)"),
    (r"\frac{x+2}{7}", r"\frac{x}{7}+\frac{3}{7}"),
    ("3x - y + 13 = 0", "3x + 4y + 14 = 0"),
    ("2x + y = 1", "2x - y = 1"),
    ("a + 3z = 0", "0"),
    ("1, -2", "1, 2"),
    (r"\pm 3", "3"),
    ("(1, 4.5)", "(4.5, 1)"),
    ("(0, 9)", "[0, 9)"),
    ("x > 5", "x < 5"),
    ("x < 1", "x > -1"),
    (r"x \in [-2,7]", r"x \in (-2,7)"),
    (r"\{1, 2\}", r"\{1, 2, 3\}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}"),
    ("k = 45, n = 2", "k = 2, n = 45"),
    ("10^{10^{10^{10}}}", "10^{10}"),
]

assert len(RIGHT) == len(WRONG)


@pytest.mark.parametrize(("gold", "answer"), RIGHT)
def test_equal_answers_are_correct_whichever_is_the_reference(gold: str, answer: str) -> None:
    assert same_answer(gold, answer)[0] is True
    assert same_answer(answer, gold)[0] is True


@pytest.mark.parametrize(("gold", "answer"), WRONG)
def test_unequal_answers_are_incorrect_whichever_is_the_reference(gold: str, answer: str) -> None:
    assert same_answer(gold, answer)[0] is False
    assert same_answer(answer, gold)[0] is False


def test_math_verify_decides_what_our_grammar_does_not_read() -> None:
    gold = Question(r"\begin{pmatrix} 6 & 8 \\ 10 & 12 \end{pmatrix}")
    total = r"\boxed{\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} + \begin{pmatrix} 5 & 6 \\ 7 & %d \end{pmatrix}}"
    right, wrong = verify(gold, total % 8), verify(gold, total % 9)
    assert (right.outcome, right.rule) == (Outcome.CORRECT, "boxed:math_verify")
    assert wrong.outcome is Outcome.INCORRECT


def test_a_phrase_is_undecided_beside_a_formula() -> None:
    verdict = verify(Question(r"\mathbb{R} \setminus \{3\}"), r"\boxed{\text{all real numbers but three}}")
    assert verdict.outcome is Outcome.UNDECIDED
    assert verdict.extracted == r"\text{all real numbers but three}"


def test_extracted_answers_can_be_stored() -> None:
    verdict = verify(Question("5"), "\\boxed{\ud800 6}")
    assert verdict.extracted == "? 6"


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ("", "no_gold"),
        ("  ", "no_gold"),
        ("All primes that leave remainder three when they are divided by four", "gold_is_prose"),
        (r"\foo{\bar", "gold_unparsed"),
        ("5" * 5000, None),
        ("9 " * 3000, "gold_too_long"),
        ("7", None),
        (r"\infty", None),
        (r"\frac{\sqrt{3}}{2}", None),
        (r"(-\infty, 3) \cup (3, \infty)", None),
        ("Yes", None),
    ],
)
def test_a_reference_is_checked_before_it_is_used(answer: str, fault: str | None) -> None:
    assert gold_fault("mathematics", Question(answer)) == fault
    if fault:
        assert verify(Question(answer), r"\boxed{7}").outcome is Outcome.GOLD_UNREADABLE


# --- metamorphic ----------------------------------------------------------------------------------

NUMBERS = st.fractions(min_value=-(10**6), max_value=10**6, max_denominator=999)
DRESSINGS = [
    "${}$",
    r"\boxed{{{}}}",
    r"\displaystyle {}",
    r"\left({}\right)",
    r"{}\;",
    "  {}  ",
    r"x = {}",
    r"\( {} \)",
    "{}.",
    r"\mathbf{{{}}}",
    r"{} \text{{ apples}}",
]


def as_latex(value: Fraction) -> str:
    sign = "-" if value < 0 else ""
    return rf"{sign}\frac{{{abs(value.numerator)}}}{{{value.denominator}}}" if value.denominator > 1 else str(value)


@settings(deadline=None, max_examples=60)
@given(value=NUMBERS, dressing=st.sampled_from(DRESSINGS))
def test_dressing_changes_no_verdict(value: Fraction, dressing: str) -> None:
    gold, answer = str(value), dressing.format(as_latex(value))
    assert same_answer(gold, answer)[0] is True
    assert same_answer(gold, dressing.format(as_latex(value + 1)))[0] is False


@settings(deadline=None, max_examples=60)
@given(value=NUMBERS, step=NUMBERS.filter(bool))
def test_another_number_is_another_answer(value: Fraction, step: Fraction) -> None:
    assert same_answer(as_latex(value), str(value + step))[0] is False
    assert same_answer(rf"{as_latex(value)}\pi + \sqrt{{2}}", rf"\sqrt2 + {as_latex(value + step)}\pi")[0] is False


EXPRESSIONS = st.recursive(
    st.sampled_from(["1", "2", "7", "x", "y", r"\pi", "0.5"]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda pair: rf"\frac{{{pair[0]}}}{{{pair[1]}}}"),
        st.tuples(inner, inner).map(lambda pair: f"({pair[0]} + {pair[1]})"),
        st.tuples(inner, inner).map(lambda pair: f"({pair[0]} - {pair[1]})"),
        st.tuples(inner, inner).map(lambda pair: rf"{pair[0]} \cdot {pair[1]}"),
        inner.map(lambda part: rf"\sqrt{{{part}}}"),
        inner.map(lambda part: f"({part})^2"),
    ),
    max_leaves=5,
)


@settings(deadline=None, max_examples=80)
@given(first=EXPRESSIONS, second=EXPRESSIONS)
def test_equality_is_reflexive_and_symmetric(first: str, second: str) -> None:
    assert same_answer(first, first)[0] is True
    assert same_answer(first, second)[0] is same_answer(second, first)[0]


@settings(deadline=None, max_examples=40)
@given(text=st.text(max_size=60))
def test_any_text_gets_a_verdict(text: str) -> None:
    assert verify(Question("17"), text).outcome in set(Outcome)
    assert same_answer(text, text)[0] is True
