"""Hostile completions, generated at full size: they make graders hang, swell or misjudge."""

from __future__ import annotations


def box(content: str) -> str:
    return r"\boxed{" + content + "}"


def hostile() -> list[str]:
    """Return more than 200 completions on which no grader should hang or crash, and which are wrong
    for the reference `7`.
    """
    texts: list[str] = []
    # Towers of powers, in every notation.
    for height in (3, 5, 9, 40):
        tower = "9"
        for _ in range(height):
            tower = f"9^{{{tower}}}"
        texts += [rf"\boxed{{{tower}}}", f"The answer is ${tower}$.", f"<answer>{tower}</answer>"]
        texts += [
            rf"\boxed{{{'**'.join(['9'] * (height + 1))}}}",
            rf"\boxed{{{'^'.join(['9'] * (height + 1))}}}",
        ]
        texts += [
            rf"\boxed{{x^{{{tower}}}}}",
            rf"\boxed{{\sqrt{{{tower}}}}}",
            rf"\boxed{{\sin({tower})}}",
        ]
        texts += [
            rf"\boxed{{2^{{-{tower}}}}}",
            rf"\boxed{{\frac{{1}}{{{tower}}}}}",
            rf"\boxed{{({tower}, 7)}}",
        ]
    # Huge factorials, binomials, exponents, roots and logarithms.
    for size in (10**4, 10**6, 10**9, 10**18):
        texts += [
            rf"\boxed{{{size}!}}",
            rf"\boxed{{{size}!!}}",
            rf"\boxed{{({size}!)!}}",
            rf"\boxed{{\binom{{{size}}}{{{size // 2}}}}}",
        ]
        texts += [
            rf"\boxed{{10^{{{size}}}}}",
            rf"\boxed{{1e{size}}}",
            rf"\boxed{{1.5 \times 10^{{-{size}}}}}",
            rf"\boxed{{2^{{{size}}} \bmod 7}}",
        ]
        texts += [
            rf"\boxed{{\sum_{{i=1}}^{{{size}}} i^{{i}}}}",
            rf"\boxed{{\prod_{{i=1}}^{{{size}}} i}}",
            rf"\boxed{{e^{{e^{{{size}}}}}}}",
        ]
        texts += [
            rf"\boxed{{\int_0^{{{size}}} x^x dx}}",
            rf"\boxed{{\sqrt[{size}]{{2}}}}",
            rf"\boxed{{\exp({size})}}",
        ]
    # Deep nesting.
    for depth in (50, 500, 5_000, 50_000):
        pairs = (
            ("{", "}"),
            ("(", ")"),
            ("[", "]"),
            (r"\frac{1}{", "}"),
            (r"\sqrt{", "}"),
            ("x_{", "}"),
            (r"\left(", ""),
            ("-", ""),
        )
        texts += [box(opening * depth + "8" + closing * depth) for opening, closing in pairs]
        texts += [box("|" * depth + "8"), box(r"\sin " * depth + "x"), box("8" + "!" * depth)]
        texts += [r"\boxed{" * depth + "8" + "}" * depth, "<answer>" * depth + "8"]
    # Megabytes.
    mega = 1_000_000
    texts += [
        "8" * mega,
        rf"\boxed{{{'8' * mega}}}",
        rf"\boxed{{{'1+' * (mega // 2)}1}}",
        rf"\boxed{{{'x' * mega}}}",
        " " * mega,
    ]
    texts += [
        f"The answer is {'8' * mega}",
        "the answer is " * (mega // 14),
        r"\boxed{8}" * (mega // 9),
        "{" * mega,
        "}" * mega,
    ]
    texts += [
        f"<answer>{'8 ' * (mega // 2)}</answer>",
        "<answer>8</answer>" * (mega // 18),
        "$" * mega,
        "\\" * mega,
        "\n" * mega,
    ]
    texts += [
        "答案是" * (mega // 3),
        f"<think>{'hm ' * (mega // 3)}",
        "</think>" * (mega // 8),
        "(" * mega,
        "*" * mega,
        "####\n" * (mega // 5),
    ]
    texts += [
        f"{'8' * (mega // 2)}/{'9' * (mega // 2)}",
        f"0.{'3' * mega}",
        f"**{'a' * mega}**",
        "answer: " + " " * mega,
        "\t" * mega,
    ]
    # Signs that break decoders and terminals.
    odd = [
        "\x00",
        "\ud800",
        "\udfff\ud800",
        "\x1b[2J",
        "\u202e",
        "\ufeff",
        "\u200b" * 500,
        "e\u0301" * 3000,
        "\U0001f600" * 500,
        "\x07\x08",
    ]
    for sign in odd:
        texts += [
            sign,
            rf"\boxed{{{sign}}}",
            rf"\boxed{{8{sign}}}",
            f"<answer>{sign}8</answer>",
            f"The answer is {sign}8",
            rf"\boxed{{\text{{{sign}}}}}",
        ]
    # Mismatched braces and half-open things.
    texts += [
        r"\boxed{",
        r"\boxed}",
        r"\boxed{{8}",
        r"\boxed{8}}}}",
        r"\boxed{\frac{8}}",
        r"\boxed{\frac{}{}}",
        r"\boxed{\sqrt{}}",
    ]
    texts += [
        r"\boxed{\begin{pmatrix}1&2}",
        r"\boxed{\end{pmatrix}}",
        r"\boxed{\left(8}",
        r"\boxed{8\right)}",
        r"\boxed{[1,2)}",
        r"\boxed{(1,2]}",
    ]
    texts += [
        r"\boxed{8\}",
        r"\boxed{\\}",
        r"\boxed{\{}",
        r"\boxed{^}",
        r"\boxed{_}",
        r"\boxed{&}",
        r"\boxed{=}",
        r"\boxed{<}",
        r"\boxed{,,,}",
    ]
    texts += [
        "<answer>",
        "</answer>",
        "<answer></answer>",
        "</answer>8<answer>",
        "<answer><answer>8</answer>",
        "</think><think>",
        "####",
        "$$",
        "$",
        "\\(",
    ]
    # texts that evaluators have run as a program
    texts += [
        rf"\boxed{{{code}}}"
        for code in (
            "__import__('os').system('touch /tmp/owned')",
            "().__class__.__bases__[0].__subclasses__()",
            "exec('while 1: pass')",
            "open('/etc/passwd').read()",
            "lambda: 0",
            "9**9**9**9",
            "factorial(factorial(100))",
        )
    ]
    # Answers that are not numbers, and alternatives.
    texts += [
        rf"\boxed{{{text}}}"
        for text in (
            "nan",
            "NaN",
            "inf",
            "-inf",
            r"\infty",
            "None",
            "null",
            "undefined",
            "7 or 8",
            "6, 7, 8",
            "1/0",
            "0/0",
            "0^0",
            r"\frac{7}{0}",
            r"\log 0",
            "i",
            r"\pm 7",
            "all of them",
            "any number",
            r"x \in \mathbb{R}",
            r"7 \neq 8",
            "7 < 8",
            "7, 7.5",
        )
    ]
    # Expressions that make simplification explode.
    texts += [box("".join(f"(x_{{{i}}}+{i})" for i in range(60))), box("(x+y+z+w)^{300}")]
    texts += [box("+".join(rf"\sin(x^{{{i}}})" for i in range(60)))]
    texts += [box("+".join(rf"\sqrt{{{i}+\sqrt{{{i + 1}}}}}" for i in range(2, 40)))]
    texts += [box(r"\lim_{x\to 0}\frac{\sin^{100} x}{x^{100}}^{100}"), box(",".join(["x"] * 400))]
    texts += [
        box(r"\{" + ",".join(map(str, range(900))) + r"\}"),
        box(r"\cup".join(f"({i},{i + 1})" for i in range(80))),
    ]
    return texts
