r"""Mathematics: as many wrong answers as right ones, and dressing that must not matter."""

import pytest

from verifiers import Outcome, Question, gold_fault
from verifiers.equality import same_answer
from verifiers.mathematics import compare, verify
from verifiers.policy import Policy

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
    # cut out of JSON, or quoted
    ("14", 'x = 14.",'),
    ("28350", '(9 * 5 * 7!) / 8",'),
    ("67,160", '"$67,160"'),
    ("12", '"12"'),
    ("5 inches", '5"'),
    (r"\begin{pmatrix}1/4\\ 3/4\end{pmatrix}", r"\begin{pmatrix} \\frac{1}{4} \\ \\frac{3}{4} \end{pmatrix}"),
    # expressions
    (r"\cotx", r"\frac{\cos x}{\sin x}"),
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
    # numbers in other clothes
    (r"\frac{1}{3}", r"0.\dot{3}"),
    ("1/3", "0.333..."),
    ("1 1/2", r"1\frac12"),
    ("42", "forty-two"),
    ("1000000", "1 million"),
    ("7!!", "105"),
    (r"\binom{10}{3}", r"{10 \choose 3}"),
    (r"\binom{10}{3}", "_{10}C_3"),
    (r"\lfloor 7/2 \rfloor", "⌊7/2⌋"),
    ("101_2", "101 (base 2)"),
    ("-0.11_2", "-0.11_{2}"),
    ("14916", "14 {, }916"),
    (r"\sin^{-1} x", r"\arcsin x"),
    ("3A_{16}", "0x3A"),
    (r"6.02 \times 10^{23}", "6.02×10²³"),
    (r"\sin 30^\circ", "0.5"),
    (r"180 - 2\alpha", r"180^\circ - 2\alpha"),
    (r"\sum_{k=1}^{n} k", "n(n+1)/2"),
    (r"\gcd(m, n)", r"\operatorname{gcd}(n, m)"),
    # units, times, ratios
    ("3 hours 45 minutes", "225 minutes"),
    ("9.8 m/s^2", r"9.8\,\mathrm{m}/\mathrm{s}^2"),
    ("100 °C", r"100^\circ\text{C}"),
    ("20:34", r"8:34 \text{ p.m.}"),
    ("2:3", "4:6"),
    # sets of numbers
    ("|x|<3", "(-3, 3)"),
    (r"x \ne 2", r"\mathbb{R} \setminus \{2\}"),
    (r"[-1,0) \cup (0,1]", r"-1 \le x \le 1, x \ne 0"),
    (r"\{x \mid x \ge 3\}", r"[3, \infty)"),
    (r"\{1, 3\} \cup \{2\}", "1, 2, 3"),
    ("no solution", r"\emptyset"),
    # rows
    (r"\frac12\begin{pmatrix}2&0\\0&4\end{pmatrix}", "[[1, 0], [0, 2]]"),
    (r"\begin{pmatrix}1\\2\\3\end{pmatrix}", r"\mathbf{i} + 2\mathbf{j} + 3\mathbf{k}"),
    (
        r"\begin{cases} x^2 & x \ge 0 \\ -x & x < 0 \end{cases}",
        r"\begin{cases} -x & \text{if } x < 0 \\ x^2 & \text{if } x \ge 0 \end{cases}",
    ),
    (r"\begin{cases} a+b=1 \\ a-b=3 \end{cases}", "a - b = 3, a + b = 1"),
    # letters that the answer introduces itself
    ("f(x) = x^2", "f(t) = t^2"),
    (r"n\pi, n \in \mathbb{Z}", r"x = k\pi \text{ for any integer } k"),
    (r"\frac{\pi}{4} + k\pi, k \in \mathbb{Z}", r"\frac{5\pi}{4} + n\pi, n \in \mathbb{Z}"),
    (r"x \equiv 3 \pmod 7", r"x = 7k + 10, k \in \mathbb{Z}"),
    ("(y - 1)/(x - 2) = 3", "y - 1 = 3(x - 2)"),
]

WRONG = [
    ("35", r"a^3 + b^2 + c \leq 50"),
    ("14", 'x = 15.",'),
    ("5 cm", '5"'),
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
    # numbers in other clothes
    (r"\frac{1}{3}", r"0.\dot{4}"),
    ("1/3", "0.3"),
    ("1 1/2", "11/2"),
    ("42", "twenty-four"),
    ("1000000", "1 billion"),
    ("7!!", "5040"),
    (r"\binom{10}{3}", r"{10 \choose 4}"),
    (r"\binom{10}{3}", "_{10}C_4"),
    (r"\lfloor 7/2 \rfloor", "⌈7/2⌉"),
    ("101_2", "101"),
    ("3A_{16}", "0x3B"),
    (r"6.02 \times 10^{23}", "6.02×10²²"),
    (r"\sin 30^\circ", "30"),
    (r"180 - 2\alpha", r"180^\circ - \alpha"),
    (r"\sum_{k=1}^{n} k", "n(n-1)/2"),
    (r"\gcd(m, n)", r"\operatorname{lcm}(n, m)"),
    # units, times, ratios
    ("3 hours 45 minutes", "3.45 hours"),
    ("9.8 m/s^2", "9.8 m/s"),
    ("100 °C", "100 °F"),
    ("20:34", r"8:34 \text{ a.m.}"),
    ("2:3", "3:2"),
    # sets of numbers
    ("|x|<3", "[-3, 3]"),
    (r"x \ne 2", r"\mathbb{R} \setminus \{3\}"),
    (r"[-1,0) \cup (0,1]", r"-1 \le x \le 1"),
    (r"\{x \mid x \ge 3\}", r"(3, \infty)"),
    (r"\{1, 3\} \cup \{2\}", "1, 2, 4"),
    ("no solution", "0"),
    # rows
    (r"\frac12\begin{pmatrix}2&0\\0&4\end{pmatrix}", "[[2, 0], [0, 4]]"),
    (r"\begin{pmatrix}1\\2\\3\end{pmatrix}", r"\mathbf{i} + 3\mathbf{j} + 2\mathbf{k}"),
    (r"\begin{pmatrix}1\\2\\3\end{pmatrix}", r"\begin{pmatrix}1&2&3\end{pmatrix}"),
    (r"\begin{cases} a+b=1 \\ a-b=3 \end{cases}", "a - b = 1, a + b = 3"),
    # letters that the answer does not introduce, or that run over something else
    ("f(x) = x^2", "f(t) = t^3"),
    ("x + 1", "t + 1"),
    (r"n\pi, n \in \mathbb{Z}", r"2k\pi, k \in \mathbb{Z}"),
    (r"2n, n \in \mathbb{Z}", r"2n, n \in \mathbb{N}"),
    ("28_9", "28_6"),
    ("-0.11_2", "-0.11_3"),
    (r"\sin^{-1} x", r"\sin^{-4} x"),
    (r"x \equiv 3 \pmod 7", r"x \equiv 3 \pmod 8"),
    ("x^2 + 18x + 86 = 0", "x^2 + 18x + 89 = 0"),
    (r"\sin(x) = 1/2", r"\cos(x) = 1/2"),
]

assert abs(len(RIGHT) - len(WRONG)) <= 3


@pytest.mark.parametrize(("gold", "answer"), RIGHT)
def test_equal_answers_are_correct_whichever_is_the_reference(gold: str, answer: str) -> None:
    assert same_answer(gold, answer)[0] is True
    assert same_answer(answer, gold)[0] is True


@pytest.mark.parametrize(("gold", "answer"), WRONG)
def test_unequal_answers_are_incorrect_whichever_is_the_reference(gold: str, answer: str) -> None:
    assert same_answer(gold, answer)[0] is False
    assert same_answer(answer, gold)[0] is False


def test_math_verify_decides_what_our_grammar_does_not_read() -> None:
    right, wrong = (verify(Question(r"\frac{1}{3}"), rf"\boxed{{\int_0^1 x^{power} \, dx}}") for power in (2, 3))
    assert (right.outcome, right.rule) == (Outcome.CORRECT, "boxed:math_verify")
    assert wrong.outcome is Outcome.INCORRECT


@pytest.mark.parametrize(
    ("gold", "answer", "outcome"),
    [
        (r"\frac{\pi^2}{6}", r"\sum_{n=1}^{\infty} \frac{1}{n^2}", Outcome.CORRECT),  # converges slowly
        ("3", r"\int_0^1 9x^2 dx", Outcome.CORRECT),
        ("4", r"\int_0^1 9x^2 dx", Outcome.INCORRECT),
        ("3", r"\lim_{x\to 0} \frac{\sin 3x}{x}", Outcome.CORRECT),
        ("1, -2", r"\text{No integers}", Outcome.INCORRECT),
        ("12", "___", Outcome.INCORRECT),
    ],
)
def test_what_our_layers_leave_open(gold: str, answer: str, outcome: Outcome) -> None:
    assert compare(gold, answer)[0] is outcome


def test_a_phrase_is_undecided_beside_a_formula() -> None:
    verdict = verify(Question(r"\mathbb{R} \setminus \{3\}"), r"\boxed{\text{all real numbers but three}}")
    assert verdict.outcome is Outcome.UNDECIDED
    assert verdict.extracted == r"\text{all real numbers but three}"


@pytest.mark.parametrize(
    ("gold", "answer", "policy", "outcome", "rule"),
    [
        ("50%", "50", Policy(), "correct", "identical_expression+percent"),
        ("50%", "0.5", Policy(), "correct", "exact_number+percent"),
        ("50%", "50", Policy(percent="value"), "incorrect", "exact_number+percent"),
        ("50%", "0.5", Policy(percent="value"), "correct", "exact_number+percent"),
        ("1, 2", "2, 1", Policy(), "correct", "unordered"),
        ("1, 2", "2, 1", Policy(lists="ordered"), "incorrect", "ordered/exact_number"),
        (r"\{1, 2\}", r"\{2, 1\}", Policy(lists="ordered"), "correct", "unordered"),
        ("5 cm", "5", Policy(), "correct", "identical_expression+unit"),
        ("5 cm", "5", Policy(units="strict"), "incorrect", "unit"),
        ("5 cm", "0.05 m", Policy(units="strict"), "correct", "exact_number"),
        ("180°", r"\pi", Policy(), "correct", "numeric+degrees"),
        (r"\sqrt{2}", "1.41421", Policy(), "correct", "decimal_rounding"),
        (r"\sqrt{2}", "1.41", Policy(), "incorrect", "numeric"),
        (r"\sqrt{2}", "1.41", Policy(rounding_digits=3), "correct", "decimal_rounding"),
        (r"\sqrt{2}", "1.41421356237", Policy(rounding_digits=None), "incorrect", "numeric"),
    ],
)
def test_a_policy_decides_what_mathematics_leaves_open(
    gold: str, answer: str, policy: Policy, outcome: str, rule: str
) -> None:
    assert compare(gold, answer, policy) == (outcome, rule)


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


@pytest.mark.parametrize(
    ("gold", "answer", "equal"),
    [
        ("f(0)", "0", False),
        ("-2f'(0)", "0", False),
        ("f(-1)", "-f(1)", False),
        ("2f(1)+3", "3+2f(1)", True),
        ("h(b+c)", "hb+hc", True),
        ("x(2)", "2x", True),
    ],
)
def test_the_value_of_a_function_is_no_product(gold: str, answer: str, equal: bool):
    assert (compare(gold, answer)[0] is Outcome.CORRECT) is equal
