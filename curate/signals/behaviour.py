"""Reasoning behaviour in English and Chinese: counts of phrases that express doubt, checks and
steps.

A phrase is counted by its form, so the counts compare many traces (or follow the "aha moment" over
training); they do not judge a single trace. `reflective_words` are the ten words that the
DeepSeek-R1 paper (supplement, analysis of R1-Zero's self-reflection) counts over training.
"""

from __future__ import annotations

import polars as pl


def _phrases(english: tuple[str, ...], others: tuple[str, ...]) -> str:
    """Build one case-insensitive pattern of English words and other alternatives.

    Word boundaries are ASCII: Unicode ones are fifty times slower on text that mixes scripts.
    """
    return rf"(?im)(?-u:\b)(?:{'|'.join(english)})(?-u:\b)|{'|'.join(others)}"


_REFLECTION = _phrases(
    (
        r"hmm+|hold on|aha|oops|on second thought|come to think of it",
        r"let(?:'s| me) (?:re-?think|re-?consider|re-?evaluate|re-?examine|think again)",
        r"i (?:think i )?made a mistake|am i (?:sure|right)|is (?:that|this) right",
        r"that (?:can'?t|cannot) be right",
        r"something(?:'s| is) (?:off|wrong)|actually, (?:no|wait|that|this|it|let)",
    ),
    (
        # A pause, not "wait for the bus": a mark or the start of a new thought follows.
        r"(?-u:\b)wait(?:[,.!?:;…—-]|\s*$| (?:no|but|a (?:minute|second|moment|sec)|what|that|is|if"
        r"|i|maybe|actually|so|let|the|this|it|we|why|how|there|because|not|did|does)(?-u:\b))",
        # "Wait", not "and so on": at the start of a sentence, or between commas.
        r"(?:^|[。！？!?…>]\s*)等等|[，,]\s*等等[，,！!]",
        "等一下|且慢|慢着|稍等|再想想|想一想|仔细想|回头看|反思|哎呀",
        "重新考虑|重新思考|重新审视|不对劲|不对[,，。！!]|好像不对|我错了|弄错了|搞错了",
    ),
)
_VERIFICATION = _phrases(
    (
        r"let(?:'s| me| us) (?:double[- ]?check|check|verify|confirm|test)",
        r"double[- ]?check(?:ing)?|sanity check",
        r"to (?:verify|check|confirm|be sure)|verif(?:y|ying|ication)|makes sense",
        r"plug(?:ging)? (?:it |this |that |them |these )?(?:back|in)",
        r"substitut(?:e|ing) (?:it |this |that |them )?back",
    ),
    (
        # A check of one's own result; prose has "medical checks" and "verification codes".
        "验算|带回|代入(?:原|回|检)|确认一下",
        "(?:让我|我来|我们来|再|重新|下面|现在)(?:我们)?(?:来|再)?(?:验证|检验|核对|检查|复核)",
        "(?:验证|检验|核对|检查|复核)(?:一下|一遍|一次|答案|结果|计算|是否(?:成立|正确|满足)|[：:])",
        r"checking(?: that| if| whether| our| my| this| the (?:answer|result|work)|[:,])",
    ),
)
_BACKTRACK = _phrases(
    (
        r"(?:let(?:'s| me) )?try (?:a different|another|some other) (?:way|approach|method|idea)",
        r"start(?:ing)? over|start again|go(?:ing)? back to|back up|dead end|scratch that",
        r"alternatively|(?:that|this|it) (?:doesn'?t|does not|didn'?t|won'?t) work",
        r"that(?:'s| is| was) (?:wrong|not right|incorrect)",
        r"instead, (?:let|try|i)",
    ),
    (
        "换(?:一种|一个|个|种)(?:方法|思路|角度|办法)|另一种(?:方法|思路)|从头(?:再)?来",
        "行不通|走不通|这样不行",
        "重新(?:开始|计算|算|来)|回到(?:上一步|前面|原)",
    ),
)
_R1_WORDS = (
    r"(?i)(?-u:\b)(?:wait|mistake|however|but|retry|error|verify|wrong|evaluate|check)(?-u:\b)"
)
_MARKERS = (
    r"(?im)(?-u:\b)step \d+|^\s*(?:\d{1,2}[.)、]|[-*•])\s"
    r"|(?-u:\b)(?:first|second|third)(?:ly)?(?-u:\b)|(?-u:\b)(?:next|then|finally|lastly)(?-u:\b)"
    r"|第[一二三四五六七八九十\d]+步|步骤\s*[一二三四五六七八九十\d]+|首先|其次|然后|接着|接下来|最后"
)
# A step is a sentence or a line with a letter or an equals sign. A stop ends a sentence only if
# white space follows, so that 3.5 and 0.1 stay whole; full-width marks always end one.
_STEP = r"[^\n。！？；]*?(?:\p{L}|=)[^\n。！？；]*?(?:[.!?;](?:\s|\z)|[\n。！？；]|\z)"


def behaviour(frame: pl.DataFrame) -> pl.DataFrame:
    """Measure the columns of group `behaviour` (schemas/signals.sql) on a prepared frame."""
    cot = pl.col("_cot")
    return frame.select(
        reflection_count=cot.str.count_matches(_REFLECTION),
        verification_count=cot.str.count_matches(_VERIFICATION),
        backtrack_count=cot.str.count_matches(_BACKTRACK),
        reflective_words=cot.str.count_matches(_R1_WORDS),
        step_count=cot.str.count_matches(_STEP),
        step_markers=cot.str.count_matches(_MARKERS),
        equation_count=cot.str.count_matches("=", literal=True),
    )
