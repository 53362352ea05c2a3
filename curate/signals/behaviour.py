"""Reasoning behaviour in English and Chinese: counts of phrases by which a writer doubts, checks, goes back, or steps on.

A phrase is counted where it stands, whatever it meant there; the counts are for comparing many traces (and for the
"aha moment" over training), not for judging one. `reflective_words` are the ten words that the DeepSeek-R1 paper
(supplement, analysis of R1-Zero's self-reflection) counts over training.
"""

from __future__ import annotations

import polars as pl

_REFLECTION = (
    r"(?i)\b(?:wait|hmm+|hold on|on second thought|come to think of it|let me (?:re-?think|re-?consider|re-?evaluate|re-?examine"
    r"|think again)|let'?s (?:re-?think|re-?consider|re-?evaluate|re-?examine|think again)|i (?:made a|think i made a) mistake"
    r"|aha|oops|am i (?:sure|right)|is that right|is this right|that (?:can'?t|cannot) be right|something(?:'s| is) (?:off|wrong))\b"
    r"|(?:^|[.!?\n]\s*)actually,|等等|等一下|且慢|慢着|稍等|再想想|想一想|重新考虑|重新思考|重新审视|仔细想|回头看|反思|不对劲|不对[,，。！!]|好像不对|我错了|弄错了|搞错了|哎呀"
)
_VERIFICATION = (
    r"(?i)\b(?:let(?:'s| me| us) (?:double[- ]?check|check|verify|confirm|test)|double[- ]?check(?:ing)?|to (?:verify|check|confirm|be sure)"
    r"|verif(?:y|ying|ication)|checking|check:|plug(?:ging)? (?:it |this |that |them |these )?(?:back|in)|substitut(?:e|ing) (?:it |this |that |them )?back"
    r"|sanity check|makes sense)(?:\b|$)|验证|检验|验算|核对|检查|复核|代入(?:原|回|检)|确认一下|带回"
)
_BACKTRACK = (
    r"(?i)\b(?:(?:let(?:'s| me) )?try (?:a different|another|some other) (?:way|approach|method|idea)|start(?:ing)? over|start again|go(?:ing)? back to"
    r"|(?:that|this|it) (?:doesn'?t|does not|didn'?t|won'?t) work|that(?:'s| is| was) (?:wrong|not right|incorrect)|dead end|scratch that|instead, (?:let|try|i)"
    r"|alternatively|back up)\b|换(?:一种|一个|个|种)(?:方法|思路|角度|办法)|重新(?:开始|计算|算|来)|从头(?:再)?来|行不通|走不通|这样不行|回到(?:上一步|前面|原)|另一种(?:方法|思路)"
)
_R1_WORDS = r"(?i)\b(?:wait|mistake|however|but|retry|error|verify|wrong|evaluate|check)\b"
_MARKERS = (
    r"(?im)\bstep \d+|^\s*(?:\d{1,2}[.)、]|[-*•])\s|\b(?:first|firstly|second|secondly|third|thirdly|next|then|finally|lastly)\b,?"
    r"|第[一二三四五六七八九十\d]+步|步骤\s*[一二三四五六七八九十\d]+|首先|其次|然后|接着|接下来|最后"
)
# A step is a sentence or a line that says something: it holds a letter or an equation. The end of a sentence is a stop that
# white space follows, so that 3.5 and 0.1 stay whole; the full-width marks end one wherever they stand.
_STEP = r"[^\n。！？；]*?(?:\p{L}|=)[^\n。！？；]*?(?:[.!?;](?:\s|\z)|[\n。！？；]|\z)"


def behaviour(frame: pl.DataFrame) -> pl.DataFrame:
    """Columns of group `behaviour` (see schemas/signals.sql) from the columns that `prepare` made."""
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
