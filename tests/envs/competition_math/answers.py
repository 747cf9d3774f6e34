r"""Responses and the verdicts that they must get, grouped by what they test.

A case is the response, the gold answer, whether the response is right, and why. ``PROBLEM`` stands for the rows below
it: the text of the problem, and whether a number is asked for (the ``literal`` of ``grade``).
"""

from __future__ import annotations

from typing import NamedTuple


class Case(NamedTuple):
    kind: str
    problem: str
    literal: bool
    response: str
    gold: str
    right: bool
    reason: str


Row = tuple[str, str, bool, str]


def _cases(kind: str, rows: list[Row], problem: str = "", literal: bool = False) -> list[Case]:
    return [Case(kind, problem, literal, *row) for row in rows]


CORRECTIONS = _cases(
    "corrections",
    [
        (r"\boxed{1}, but the answer is \boxed{2}", "2", True, "the last box counts"),
        (r"\boxed{1}, but the answer is \boxed{2}", "1", False, "the first box was corrected"),
        (r"\boxed{1}, but the answer is \boxed{2}", "1, 2", False, "two boxes are no list"),
        (r"\boxed{2}, no, \boxed{1}", "2", False, "a right answer was withdrawn"),
        (r"$\boxed{3}$. Wait, I forgot a sign: $\boxed{-3}$.", "-3", True, "the last box counts"),
        (r"$\boxed{3}$. Wait, I forgot a sign: $\boxed{-3}$.", "3", False, "the first box was corrected"),
        ("\\boxed{7}\n\nLet me check. 7 is wrong.\n\n\\boxed{8}", "8", True, "across paragraphs"),
        (r"\boxed{8}. Checking: 4 + 4 = 8.", "8", True, "a check after the box is no answer"),
        (r"\boxed{8}. Checking: 4 + 5 = 9.", "9", False, "only the box counts"),
        (r"The final answer is 9. I mean \boxed{8}.", "8", True, "a box comes before words"),
        (r"\boxed{8}. The final answer is 9.", "9", False, "a box comes before words, even earlier"),
        (r"\boxed{\frac12}\boxed{\frac13}", r"\frac13", True, "with nothing between"),
        (r"\boxed{5} \boxed{5}", "5", True, "the same twice"),
        (r"\boxed{4}\n\boxed{5}\n\boxed{4}", "4", True, "back to the first"),
        ("The answer is 4. Wait, the answer is 5.", "5", True, "without a box the last of equals counts"),
        ("The answer is 4. Wait, the answer is 5.", "4", False, "without a box the last of equals counts"),
        ("It is $4$. No, it is $5$.", "5", True, "the last formula"),
    ],
)

BOXES = _cases(
    "several boxes, odd boxes",
    [
        (r"$x=\boxed{1}$ and $y=\boxed{2}$", "1, 2", False, "one box must have the whole answer"),
        (r"$x=\boxed{1}$ and $y=\boxed{2}$", "2", True, "the last box counts"),
        (r"\boxed{1, 2}", "1, 2", True, "one box with the whole answer"),
        (r"\boxed{1 \text{ and } 2}", "1, 2", True, "'and' in a box makes a list"),
        (r"\fbox{5}", "5", True, "fbox is a box"),
        (r"\boxed{4} \fbox{5}", "5", True, "fbox is a box"),
        (r"\fbox{4} \boxed{5}", "5", True, "the last of both kinds"),
        (r"\boxed {5}", "5", True, "TeX allows a space"),
        ("\\boxed\n{5}", "5", True, "TeX allows a line end"),
        (r"\boxed{ 5 }", "5", True, "spaces inside"),
        (r"\boxed{$5$}", "5", True, "dollar signs inside"),
        (r"\boxed{\$5}", "5", True, "a currency sign"),
        (r"$$\boxed{5}$$", "5", True, "in display math"),
        (r"\[ \boxed{5}. \]", "5", True, "in brackets"),
        (r"\( \boxed{5} \)", "5", True, "in parentheses"),
        (r"\boxed{5}. I put the final answer within \boxed{}.", "5", True, "an empty box quotes the instruction"),
        (r"Within \boxed{ }: \boxed{5}", "5", True, "an empty box quotes the instruction"),
        (r"I use \boxed for it: \boxed{5}", "5", True, "a command without a brace is no box"),
        (r"\boxed{5} and so I used \boxed", "5", True, "a command without a brace is no box"),
        (r"**Answer:** $\boxed{5}$", "5", True, "in Markdown"),
        (r"`\boxed{5}`", "5", True, "in a code span"),
        (r"\boxed{\boxed{5}}", "5", True, "a box in a box"),
        (r"\boxed{x = \boxed{5}}", "5", True, "a box in a box"),
        (r"\boxed{\boxed{4} + 1}", "5", False, "the inner box is the last"),
    ],
)

BRACES = _cases(
    "nested braces",
    [
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{\sqrt{2}}{2}", True, "three levels"),
        (r"\boxed{\frac{\frac{1}{2}}{3}}", r"\frac{1}{6}", True, "a fraction in a fraction"),
        (r"\boxed{2^{2^{3}}}", "256", True, "powers of powers"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}", True, "escaped braces that are balanced"),
        (r"\boxed{{5}}", "5", True, "a group"),
        (r"\boxed{\text{(\{})} 6", "6", False, "an escaped brace does not count, and 6 is outside"),
        (r"\boxed{x_{1}=3}", "3", True, "an index"),
        (r"\boxed{\sqrt[3]{8}}", "2", True, "a cube root"),
        (r"{\boxed{5}}", "5", True, "a group around the box"),
        (r"{\boxed{5}} and {6}", "5", True, "a group after the box"),
    ],
)

TRUNCATED = _cases(
    "truncated boxes",
    [
        (r"\boxed{12", "12", False, "the last box is not closed"),
        (r"The answer is 12: \boxed{12", "12", False, "the last box is not closed"),
        (r"\boxed{12}. Let me check: \boxed{1", "12", False, "the last box is not closed"),
        (r"\boxed{\frac{1}{2}", r"\frac{1}{2}", False, "a brace is missing"),
        (r"\boxed{", "12", False, "nothing is in it"),
        (r"\boxed{12} \boxed{", "12", False, "the last box is not closed"),
        (r"\boxed{\text{it is 12}", "12", False, "a brace is missing"),
        (r"\boxed{12}}", "12", True, "a brace too many is outside"),
        (r"\boxed{" + "1" * 3000 + "}", "1", False, "longer than any answer"),
        (r"12. \boxe", "12", True, "no box was begun"),
    ],
)

NO_ANSWER = _cases(
    "no answer",
    [
        ("", "12", False, "empty"),
        (" \n ", "12", False, "blank"),
        ("I do not know.", "12", False, "no number"),
        (r"\boxed{}", "12", False, "an empty box"),
        (r"\boxed{?}", "12", False, "a question mark"),
        (r"\boxed{\text{unknown}}", "12", False, "a word"),
        (r"\boxed{twelve}", "12", False, "number words are not read"),
        ("(" * 300, "12", False, "nonsense"),
        ("\\" * 300, "12", False, "nonsense"),
        ("}{" * 300, "12", False, "nonsense"),
        (r"\boxed{\text{}}", "12", False, "an empty text"),
        ("The answer is clear.", "12", False, "no number"),
        (r"\boxed{x}", "12", False, "a name"),
        ("\x00\ud800", "12", False, "characters that are no text"),
    ],
)

UNBOXED = _cases(
    "answers without a box",
    [
        ("12", "12", True, "the number alone"),
        ("12.", "12", True, "a full stop"),
        ("**12**", "12", True, "in Markdown"),
        ("It is $12$.", "12", True, "a formula"),
        ("The answer is 12.", "12", True, "words"),
        ("The answer is: 12", "12", True, "a colon"),
        ("Answer: 12", "12", True, "a label"),
        ("final answer is 12", "12", True, "a label"),
        ("7 + 5 = 12.", "12", True, "the right side counts"),
        ("The final answer is $12$. I hope it is correct.", "12", True, "Minerva's words"),
        ("12\n13", "12", False, "the last number counts"),
        ("12\n13", "13", True, "the last number counts"),
        ("The answer is 13, not 12.", "13", True, "the number after 'answer'"),
        ("12 = 7 + 5", "12", True, "the expression is equal to the gold answer"),
        ("The answer is 1/2", r"\frac{1}{2}", True, "a fraction"),
        ("The answer is -4.", "-4", True, "a sign"),
        ("x = 5", "5", True, "an equation"),
        ("13", "12", False, "another number"),
        ("120", "12", False, "a longer number"),
        (r"It is \frac{1}{2}", r"\frac{1}{2}", True, "a fraction outside of a formula"),
    ],
)

ARITHMETIC = _cases(
    "a number is asked for",
    [
        ("4", "4", True, "the number alone"),
        ("8 - 4 = 4", "4", True, "the right side counts"),
        ("$8 - 4 = 4$", "4", True, "the right side counts"),
        ("8-4=4", "4", True, "without spaces"),
        (r"\boxed{4}", "4", True, "in a box"),
        (r"\boxed{8 - 4 = 4}", "4", True, "an equation in a box"),
        ("The answer to 8 - 4 is 4.", "4", True, "the problem's expression is no answer"),
        ("4 is the answer to 8 - 4.", "4", True, "the problem's expression is no answer"),
        ("The answer to $8-4$ is $4$.", "4", True, "the same in formulas"),
        ("**8 - 4** = **4**", "4", True, "in Markdown"),
        ("8 - 4", "4", False, "the problem's expression"),
        ("$8-4$", "4", False, "the problem's expression"),
        (r"\boxed{8-4}", "4", False, "the problem's expression"),
        ("$8-4=8-4$", "4", False, "both sides are the problem's expression"),
        ("2 + 2", "4", False, "another expression is no number"),
        ("8/2", "4", False, "another expression is no number"),
        ("5", "4", False, "another number"),
        ("4.0", "4", True, "a decimal of the same value"),
        ("04", "4", True, "a leading zero"),
        ("-4", "4", False, "another sign"),
    ],
    "What is 8 - 4? Answer with just the number.",
    literal=True,
)

QUOTED = _cases(
    "quoted problem text",
    [
        ('the answer to the problem of "8 - 4" is actually 5', "4", False, "the 4 belongs to the quotation"),
        ('the answer to the problem of "8 - 4" is actually 4', "4", True, "the number after the quotation"),
        ("the answer to “8 - 4” is 4", "4", True, "typographic quotation marks"),
        ("the answer to '8 - 4' is 5", "4", False, "single quotation marks"),
        ("The answer to `8 - 4` is 5", "4", False, "a code span"),
        ('The answer is "4".', "4", True, "a quoted number is an answer"),
        ("What is 8 - 4? Answer with just the number.", "4", False, "the whole problem"),
        ("What is 8 - 4? Answer with just the number. 4", "4", True, "an answer after the problem"),
        ("Q: What is 8 - 4?\nA: 5", "4", False, "an answer after the problem"),
        ("8 − 4 is 4", "4", True, "another minus sign"),
        ("18 - 4 = 14", "4", False, "not the problem's expression"),
        ("8 - 40 = 4", "4", True, "not the problem's expression, and the right side counts"),
    ],
    "What is 8 - 4? Answer with just the number.",
    literal=True,
)

TIMES = _cases(
    "quoted problem text",
    [
        ("The answer to 6 * 7 is 42", "42", True, "a star"),
        ("The answer to 6 x 7 is 42", "42", True, "a letter"),
        ("The answer to 6 × 7 is 42", "42", True, "a sign"),
        (r"The answer to $6 \times 7$ is 42", "42", True, "a command"),
        (r"The answer to $6 \cdot 7$ is 43", "42", False, "a command"),
        ("6 * 7", "42", False, "the problem's expression"),
    ],
    "What is 6 * 7? Answer with just the number.",
    literal=True,
)

FRACTIONS = _cases(
    "fractions and decimals",
    [
        (r"\boxed{0.5}", r"\frac{1}{2}", True, "the decimal"),
        (r"\boxed{.5}", r"\frac{1}{2}", True, "without the zero"),
        (r"\boxed{1/2}", r"\frac{1}{2}", True, "a slash"),
        (r"\boxed{\dfrac{1}{2}}", r"\frac{1}{2}", True, "dfrac"),
        (r"\boxed{\tfrac12}", r"\frac{1}{2}", True, "tfrac without braces"),
        (r"\boxed{\frac12}", r"\frac{1}{2}", True, "without braces"),
        (r"\boxed{\frac{2}{4}}", r"\frac{1}{2}", True, "not in lowest terms, not of the problem"),
        (r"\boxed{-\frac{1}{2}}", r"\frac{-1}{2}", True, "the sign's place"),
        (r"\boxed{\frac{1}{-2}}", r"-\frac{1}{2}", True, "the sign's place"),
        (r"\boxed{1\frac{1}{2}}", r"\frac{3}{2}", True, "a mixed number"),
        (r"\boxed{0.333333}", r"\frac{1}{3}", True, "six digits are enough"),
        (r"\boxed{0.33}", r"\frac{1}{3}", False, "two digits are not"),
        (r"\boxed{\frac{1}{3}}", r"\frac{1}{2}", False, "another fraction"),
        (r"\boxed{\frac{2}{1}}", r"\frac{1}{2}", False, "upside down"),
        (r"\boxed{5.0}", "5", True, "a decimal of the same value"),
        (r"\boxed{5.1}", "5", False, "another decimal"),
        (r"\boxed{3.14}", r"\pi", False, "pi is not 3.14"),
    ],
)

PERCENTS = _cases(
    "percents",
    [
        (r"\boxed{75\%}", r"\frac{3}{4}", True, "math-verify: a percent is a hundredth"),
        (r"\boxed{75\%}", "0.75", True, "math-verify: a percent is a hundredth"),
        (r"\boxed{75\%}", "75", True, "math-verify: the sign may be a unit"),
        (r"\boxed{75}", r"75\%", True, "math-verify: the sign may be a unit"),
        (r"\boxed{\frac{3}{4}}", r"75\%", True, "math-verify: a percent is a hundredth"),
        (r"\boxed{75%}", r"75\%", True, "without the backslash"),
        (r"\boxed{75 \text{ percent}}", "75", True, "the word as a unit"),
        ("The answer is 75%.", r"75\%", True, "without a box"),
        ("The answer is 75 percent.", r"75\%", True, "the word without a box"),
        (r"\boxed{7.5\%}", r"75\%", False, "another percentage"),
        (r"\boxed{0.75\%}", r"75\%", False, "a hundredth too small"),
        (r"\boxed{75}\%", "75", True, "the sign outside"),
        (r"\boxed{750\%}", "75", False, "another percentage"),
    ],
)

UNITS = _cases(
    "units",
    [
        (r"\boxed{5 \text{ cm}}", "5", True, "a unit"),
        (r"\boxed{5}", r"5 \text{ cm}", True, "without the gold answer's unit"),
        (r"\boxed{5\,\mathrm{cm}^2}", "5", True, "a square unit"),
        (r"\boxed{60^\circ}", "60", True, "degrees"),
        (r"\boxed{60}", r"60^\circ", True, "degrees"),
        (r"\boxed{60^{\circ}}", r"60^\circ", True, "degrees in braces"),
        (r"\boxed{\$12.50}", "12.5", True, "dollars"),
        (r"\boxed{12 \text{ apples}}", "12", True, "things"),
        (r"\boxed{5 \text{ cm}}", "6", False, "another number"),
        (r"\boxed{12 \text{ inches}}", "1", False, "units are not converted"),
        ("The answer is 5 cm.", "5", True, "without a box"),
        ("The answer is $5.", "5", True, "dollars without a box"),
    ],
)

SETS = _cases(
    "tuples, sets and intervals",
    [
        (r"\boxed{(1,2)}", "(1, 2)", True, "a point"),
        (r"\boxed{1,2}", "(1, 2)", True, "math-verify: a point without parentheses"),
        (r"\boxed{2,1}", "(1, 2)", False, "a point has an order"),
        (r"\boxed{(2,1)}", "(1, 2)", False, "a point has an order"),
        (r"\boxed{\left(1,2\right)}", "(1, 2)", True, "left and right"),
        (r"\boxed{(1,2,3)}", "(1, 2, 3)", True, "three coordinates"),
        (r"\boxed{(1,2)}", "(1, 2, 3)", False, "too few coordinates"),
        (r"\boxed{(3, \pi/2)}", r"\left( 3, \frac{\pi}{2} \right)", True, "polar coordinates"),
        (r"\boxed{\{1,2\}}", "1, 2", True, "a set"),
        (r"\boxed{2, 1}", "1, 2", True, "a list of solutions has no order"),
        (r"\boxed{\{2,1\}}", r"\{1,2\}", True, "a set has no order"),
        (r"\boxed{1}", "1, 2", False, "one of two solutions"),
        (r"\boxed{1,2,3}", "1, 2", False, "a solution too many"),
        (r"\boxed{\{\}}", "0", False, "the empty set is not 0"),
        (r"\boxed{\emptyset}", r"\emptyset", True, "the empty set"),
        (r"\boxed{[1,2]}", "[1, 2]", True, "a closed interval"),
        (r"\boxed{[1,2)}", "[1, 2]", False, "half open is not closed"),
        (r"\boxed{(1,2)}", "[1, 2]", False, "open is not closed"),
        (r"\boxed{(-\infty, 3]}", r"(-\infty,3]", True, "half a line"),
        (r"\boxed{(-\infty, 3)}", r"(-\infty,3]", False, "open is not closed"),
        (r"\boxed{(-\infty,1) \cup (2,\infty)}", r"(-\infty,1)\cup(2,\infty)", True, "a union"),
        (r"\boxed{(2,\infty) \cup (-\infty,1)}", r"(-\infty,1)\cup(2,\infty)", True, "a union has no order"),
        (r"\boxed{x \in [1,2]}", "[1,2]", True, "with the name"),
        (r"\boxed{(1, -2), (3, 4)}", "(1, -2), (3, 4)", True, "two points"),
        (r"\boxed{1 \pm \sqrt{2}}", r"1 + \sqrt{2}, 1 - \sqrt{2}", True, "plus or minus"),
    ],
)

TEXTS = _cases(
    "text answers",
    [
        (r"\boxed{\text{even}}", r"\text{even}", True, "the same text"),
        (r"\boxed{even}", r"\text{even}", True, "without the command"),
        (r"\boxed{\text{Even}}", r"\text{even}", True, "a capital letter"),
        (r"\boxed{\text{odd}}", r"\text{even}", False, "another text"),
        (r"\boxed{\textbf{even}}", r"\text{even}", True, "bold"),
        (r"\boxed{\mathrm{even}}", r"\text{even}", True, "another command"),
        (r"\boxed{C}", "C", True, "a letter"),
        (r"\boxed{\text{C}}", "C", True, "a letter as text"),
        (r"\boxed{B}", "C", False, "another letter"),
        (r"\boxed{\text{(C)}}", r"\text{(C)}", True, "in parentheses"),
    ],
    "Is the number even or odd? Choose C or B.",
)

UNICODE = _cases(
    "unicode",
    [
        ("\\boxed{\N{MINUS SIGN}5}", "-5", True, "a minus sign"),
        ("The answer is \N{MINUS SIGN}5.", "-5", True, "a minus sign without a box"),
        ("\\boxed{\N{MINUS SIGN}5}", "5", False, "a minus sign is a sign"),
        ("答案是 $\\boxed{5}$。", "5", True, "words of another language"),
        ("\N{GREEK SMALL LETTER PI} \\boxed{\\pi}", r"\pi", True, "a letter outside"),
        ("😀 \\boxed{5} 😀", "5", True, "pictures"),
        ("\\boxed{5\N{NO-BREAK SPACE}}", "5", True, "a space that does not break"),
        ("\ud800 12", "12", True, "half a character"),
        ("\\boxed{60°}", "60", True, "a degree sign"),
        ("\\boxed{2 × 3}", "6", True, "a multiplication sign"),
    ],
)

NUMBERS = _cases(
    "thousands separators, zero, large and complex numbers",
    [
        (r"\boxed{1,000}", "1000", True, "a comma"),
        (r"\boxed{1000}", "1,000", True, "a comma in the gold answer"),
        (r"\boxed{1{,}000}", "1000", True, "a comma in braces"),
        (r"\boxed{1,\!000}", "1000", True, "a comma with a negative space"),
        (r"\boxed{1,234,567}", "1234567", True, "two commas"),
        (r"\boxed{1,000}", "1", False, "not 1"),
        (r"\boxed{1,000.5}", "1000.5", True, "a comma and a point"),
        ("The answer is 1,000.", "1000", True, "without a box"),
        (r"\boxed{1, 000}", "1000", False, "a space makes a list"),
        (r"\boxed{-0}", "0", True, "negative zero"),
        (r"\boxed{0}", "-0", True, "negative zero"),
        (r"\boxed{-0.0}", "0", True, "negative zero"),
        (r"\boxed{0}", "1", False, "not 1"),
        (r"\boxed{007}", "7", True, "leading zeros"),
        (r"\boxed{+7}", "7", True, "a plus sign"),
        (r"\boxed{123456789012345678901234567890}", "123456789012345678901234567890", True, "30 digits"),
        (r"\boxed{123456789012345678901234567891}", "123456789012345678901234567890", False, "the last digit differs"),
        (r"\boxed{1.2 \times 10^{5}}", "120000", True, "a power of ten"),
        (r"\boxed{3+2i}", "3+2i", True, "a complex number"),
        (r"\boxed{2i+3}", "3+2i", True, "in another order"),
        (r"\boxed{3-2i}", "3+2i", False, "the conjugate"),
        (r"\boxed{1011_2}", "1011_2", True, "a number in base 2"),
        (r"\boxed{\infty}", r"\infty", True, "infinity"),
        (r"\boxed{-\infty}", r"\infty", False, "the other infinity"),
    ],
)

MATRICES = _cases(
    "matrices and vectors",
    [
        (
            r"\boxed{\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}}",
            r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
            True,
            "the same matrix",
        ),
        (
            r"\boxed{\begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix}}",
            r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
            True,
            "other brackets",
        ),
        (
            r"\boxed{\begin{pmatrix} 1 & 3 \\ 2 & 4 \end{pmatrix}}",
            r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
            False,
            "transposed",
        ),
        (
            r"\boxed{\begin{pmatrix} 1/2 \\ 1 \end{pmatrix}}",
            r"\begin{pmatrix} \frac{1}{2} \\ 1 \end{pmatrix}",
            True,
            "an element of the same value",
        ),
        (
            r"\boxed{\begin{pmatrix} 1 \\ 2 \end{pmatrix}}",
            r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}",
            False,
            "a vector has an order",
        ),
    ],
)

EQUATIONS = _cases(
    "equations and inequalities",
    [
        (r"\boxed{x = 5}", "5", True, "the value of a name"),
        (r"\boxed{5}", "x = 5", True, "without the name"),
        (r"\boxed{x = 5}", "x = 5", True, "the same equation"),
        (r"\boxed{x = 5}", "6", False, "another value"),
        (r"\boxed{x = 2 + 3 = 5}", "5", True, "the last side counts"),
        (r"\boxed{f(x) = x^2}", "x^2", True, "a function"),
        (r"\boxed{y = 2x + 3}", "y = 2x + 3", True, "a line"),
        (r"\boxed{y - 2x = 3}", "y = 2x + 3", True, "the same line, not of the problem"),
        (r"\boxed{y = 2x - 3}", "y = 2x + 3", False, "another line"),
        (r"\boxed{y = 3 + 2x}", "y = 2x + 3", True, "in another order"),
        (r"\boxed{x = 1, x = 2}", "1, 2", True, "two solutions"),
        (r"\boxed{x > 2}", "x > 2", True, "an inequality"),
        (r"\boxed{2 < x}", "x > 2", True, "turned around"),
        (r"\boxed{x \geq 2}", "x > 2", False, "another relation"),
        (r"\boxed{x = 5}", "y = 5", False, "another name"),
        (r"\boxed{n = 12 \text{ apples}}", "12", True, "a name and a unit"),
    ],
)

EXPRESSIONS = _cases(
    "expressions that are not of the problem",
    [
        (r"\boxed{\sqrt{2}}", r"\sqrt{2}", True, "a root stays a root"),
        (r"\boxed{2^{10}}", "2^{10}", True, "a power stays a power"),
        (r"\boxed{2^{10}}", "1024", True, "a power that is worked out"),
        (r"\boxed{1024}", "2^{10}", True, "a power that is worked out"),
        (r"\boxed{\sqrt{18}}", r"3\sqrt{2}", True, "a root"),
        (r"\boxed{1.41421356}", r"\sqrt{2}", True, "digits enough"),
        (r"\boxed{1.41}", r"\sqrt{2}", False, "too few digits"),
        (r"\boxed{10!}", "10!", True, "a factorial"),
        (r"\boxed{\binom{10}{3}}", "120", True, "a binomial coefficient"),
        (r"\boxed{6 \cdot 7}", "42", True, "a product"),
        (r"\boxed{(x+2)(x-5)}", "x^2-3x-10", True, "factors"),
        (r"\boxed{x(x+1)}", "x^2+x", True, "factors"),
        (r"\boxed{x^2+1}", "x^2+x", False, "another polynomial"),
        (r"\boxed{2\pi}", r"2\pi", True, "a multiple of pi"),
        (r"\boxed{6.28318531}", r"2\pi", True, "digits enough"),
        (r"\boxed{\log_2 8}", "3", True, "a logarithm"),
        (r"\boxed{e^2}", "e^2", True, "a power of e"),
        (r"\boxed{|x|}", r"\sqrt{x^2}", True, "an absolute value"),
    ],
)

RESTATED = [
    Case("expressions of the problem", problem, False, response, gold, right, reason)
    for problem, response, gold, right, reason in [
        ("Compute $7 + 5$.", r"\boxed{7 + 5}", "12", False, "a sum"),
        ("Compute $7 + 5$.", r"\boxed{7+5}", "12", False, "without spaces"),
        ("Compute $7 + 5$.", r"\boxed{7 + 5 = 12}", "12", True, "the right side counts"),
        ("Compute $7 + 5$.", r"\boxed{x = 7 + 5}", "12", False, "the right side is the problem's"),
        ("Compute $7 + 5$.", r"\boxed{12}", "12", True, "the number"),
        ("Compute $7 + 5$.", "$7 + 5$", "12", False, "without a box"),
        ("Compute $7 + 5$.", "7 + 5", "12", False, "without a box and a formula"),
        ("Compute $7 + 5$.", "The answer is 7 + 5.", "12", False, "without a box, in words"),
        ("Compute $7 + 5$.", "7 + 5 = 12", "12", True, "the right side counts"),
        ("Compute $7 + 5$.", r"\boxed{7 + 5}. No, \boxed{12}", "12", True, "a correction"),
        ("Compute $7 + 5$.", r"\boxed{(7 + 5)}", "12", False, "in parentheses"),
        ("Compute $7 + 5$.", r"\boxed{7 + 5 + 0}", "12", False, "with nothing added"),
        ("Compute $7 + 5$.", r"\boxed{1 \cdot (7+5)}", "12", False, "times one"),
        ("Compute 7 + 5.", r"\boxed{(7 + 5)}", "12", False, "in parentheses, from text"),
        ("Let $s = 7 + 5$.", r"\boxed{(7 + 5)}", "12", False, "in parentheses, from a side of an equation"),
        (r"Compute \[7 + 5.\]", r"\boxed{0 + (7 + 5)}", "12", False, "from display math"),
        (r"Compute \(\binom{4}{2}\).", r"\boxed{(\binom{4}{2})}", "6", False, "from math in parentheses"),
        (r"A side is $\sqrt{2}$.", r"\boxed{\frac{6}{\sqrt{2}}}", r"3\sqrt{2}", True, "a formula that is not equal"),
        ("A side is $7 + 5$.", r"\boxed{2(7 + 5)}", "24", True, "a formula that is not equal"),
        (r"Write $\frac{3}{20}$ as a decimal.", r"\boxed{x = \frac{3}{20}}", "0.15", False, "no decimal, with a name"),
        (r"Write $\frac{3}{20}$ as a decimal.", r"\boxed{1 \cdot (\frac{3}{20})}", "0.15", False, "times one"),
        ("Find $x$ if $f(5) = x$.", r"\boxed{(5)}", "5", True, "a number in parentheses"),
        (r"The set is $\{5\}$.", r"\boxed{\{5\}}", "5", True, "a set of a number"),
        (r"Add $(\frac12)$ and 0.", r"\boxed{(\frac12)}", r"\frac{1}{2}", True, "a fraction in parentheses"),
        ("Compute $17 + 5$.", r"\boxed{7 + 5}", "12", True, "a part of a longer number is no expression"),
        (r"Compute $6 \cdot 7$.", r"\boxed{6 \times 7}", "42", False, "another sign for times"),
        (r"Compute $\dbinom{31}{28}$.", r"\boxed{\dbinom{31}{28}}", "4495", False, "a binomial coefficient"),
        (r"Simplify $\sqrt{18}$.", r"\boxed{\sqrt{18}}", r"3\sqrt{2}", False, "a root"),
        (r"Simplify $\sqrt{18}$.", r"\boxed{\sqrt {18}}", r"3\sqrt{2}", False, "a space"),
        (r"Simplify $\sqrt{18}$.", r"\boxed{3\sqrt2}", r"3\sqrt{2}", True, "the simpler form"),
        (r"Simplify $\frac{6}{8}$.", r"\boxed{\frac{6}{8}}", r"\frac{3}{4}", False, "not in lowest terms"),
        (r"Simplify $\frac{6}{8}$.", r"\boxed{\dfrac{6}{8}}", r"\frac{3}{4}", False, "not in lowest terms"),
        (r"Simplify $\frac{6}{8}$.", r"\boxed{\frac34}", r"\frac{3}{4}", True, "in lowest terms"),
        (r"Simplify $\frac{6}{8}$.", r"\boxed{0.75}", r"\frac{3}{4}", True, "the value"),
        (r"Write $\frac{3}{20}$ as a decimal.", r"\boxed{\frac{3}{20}}", "0.15", False, "no decimal"),
        (r"Write $\frac{3}{20}$ as a decimal.", r"\boxed{0.15}", "0.15", True, "the decimal"),
        ("Compute $5!$.", r"\boxed{5!}", "120", False, "a factorial"),
        ("Compute $2^{10}$.", r"\boxed{2^{10}}", "1024", False, "a power"),
        ("Which is larger, $2^{10}$ or $10^3$?", r"\boxed{2^{10}}", "2^{10}", True, "the gold answer has this form"),
        ("Which is larger, 2^10 or 10^3?", "2^10", "2^{10}", True, "the gold answer has this form"),
        ("Find $2^5 + 1$ as $2^a + 1$.", r"\boxed{1 + 2^5}", "2^5 + 1", True, "the gold answer in another order"),
        ("Factor $x^2 - 4$.", r"\boxed{x^2 - 4}", "(x-2)(x+2)", False, "a polynomial"),
        ("Factor $x^2 - 4$.", r"\boxed{(x+2)(x-2)}", "(x-2)(x+2)", True, "the factors in another order"),
        ("Expand $(x+2)(x-5)$.", r"\boxed{(x+2)(x-5)}", "x^2-3x-10", False, "the factors"),
        ("Expand $(x+2)(x-5)$.", r"\boxed{(x+2)(x-5) = x^2-3x-10}", "x^2-3x-10", True, "the right side counts"),
        ("Simplify $x + x + 1$.", r"\boxed{x + x + 1}", "2x+1", False, "a sum"),
        ("Solve $2x + 1 = 5$.", r"\boxed{2x + 1 = 5}", "x = 2", False, "the equation itself"),
        ("Solve $2x + 1 = 5$.", r"\boxed{x = 2}", "x = 2", True, "the solution"),
        ("Solve $x + 1 > 3$.", r"\boxed{x + 1 > 3}", "x > 2", False, "the inequality itself"),
        ("Solve $x + 1 > 3$.", r"\boxed{x > 2}", "x > 2", True, "the solution"),
        ("Is $y = 2x + 3$ a line?", r"\boxed{y = 2x + 3}", "2x + 3", True, "the gold answer's form with its name"),
        ("Each has probability $1/2$.", r"\boxed{1/2}", r"\frac{1}{2}", True, "a fraction in lowest terms"),
        (r"Let $0 \le t < \pi/2$.", r"\boxed{\pi/2}", r"\frac{\pi}{2}", True, "another sign for the fraction"),
        (
            r"Is it $\frac{3\sqrt{2}}{2}$?",
            r"\boxed{\frac{3\sqrt{2}}{2}}",
            r"\frac{3}{2}\sqrt{2}",
            True,
            "the same form",
        ),
        ("Both $12$ and $13$ are near.", r"\boxed{12}", "12", True, "a number is no expression"),
        ("The points are $(1,2)$ and $(3,4)$.", r"\boxed{(1,2)}", r"\left( 1, 2 \right)", True, "a point"),
        ("Take $a = 5$.", r"\boxed{a = 5}", "5", True, "a number with its name"),
        ("Is it even or odd?", r"\boxed{even}", r"\text{even}", True, "a word"),
        (r"It grew by $5\%$.", r"\boxed{5\%}", "5", True, "a percentage"),
        (r"Each costs \$5.", r"\boxed{\$5}", "5", True, "dollars"),
        (r"It is $5\text{ cm}$ long.", r"\boxed{5\text{ cm}}", "5", True, "a length"),
        (r"What is $\sin 30^\circ$?", r"\boxed{\frac12}", r"\frac{1}{2}", True, "the value"),
        (r"Compute $\log_2 64$.", r"\boxed{\log_2 64}", "6", False, "a logarithm"),
        (r"Compute $\lceil 2.5 \rceil$.", r"\boxed{\lceil 2.5 \rceil}", "3", False, "rounding"),
        (r"Compute $(1+2i)6-3i$.", r"\boxed{(1+2i)6-3i}", "6+9i", False, "complex numbers"),
        ("Compute $7 + 5$.", r"\boxed{8 + 4}", "12", True, "an expression that the problem does not have"),
        ("Let $S = 7 + 5$ and $T = 3$.", r"\boxed{S = 7 + 5}", "12", False, "an equation of the problem"),
        ("What is 1/2 of 1?", "1/2", r"\frac{1}{2}", True, "a fraction without a box"),
    ]
]

CASES = [
    *(CORRECTIONS + BOXES + BRACES + TRUNCATED + NO_ANSWER + UNBOXED + ARITHMETIC + QUOTED + TIMES + FRACTIONS),
    *(PERCENTS + UNITS + SETS + TEXTS + UNICODE + NUMBERS + MATRICES + EQUATIONS + EXPRESSIONS + RESTATED),
]
