"""Where the answer is in a completion.

In order: the `<answer>…</answer>` block; the last balanced `\\boxed{…}`; an announced final answer ("the answer is …", in
the languages of `ANNOUNCE`); a completion that is nothing but one short line. All of it after the reasoning ended: an
answer inside the reasoning does not count. Work is linear in the length of the text.
"""

from __future__ import annotations

import re
from typing import NamedTuple

THINK = ("<think>", "</think>")

# Only the end of a text announces its answer; a megabyte of prose is not searched. Characters; ours.
TAIL = 20_000
# Boxes that are looked at, from the last one back.
MAX_BOXES = 20
# A completion of one line up to this length is taken for a bare answer.
BARE = 200


class Extracted(NamedTuple):
    """An answer (None where there is none), where it was found, and why there is none."""

    answer: str | None
    where: str = ""
    detail: str = ""


_WORDS = {
    "en": r"(?:the |my |our |your )?(?:final |correct |right )*(?:answer|solution|result)(?: to (?:the|this) (?:question|problem))?"
    r"(?: is| equals| would be| should be| must be| comes out to| =)|(?:the |my |our )?(?:final |correct )*answer|final result",
    "ja": r"(?:最終的な|最終|正しい)?(?:答え|解答|答(?!案)|回答|正解)(?:は|が)|(?:最終)?(?:答え|解答|答(?!案)|回答|正解)",
    "zh": r"(?:最终|最后|正确|因此|所以|故)?的?(?:答案|結果|结果|答)(?:应该|應該|就)?(?:是|为|為|等于|等於)|(?:最终|最后|正确)?(?:答案|答)",
    "ko": r"(?:최종 ?|따라서 ?)?(?:정답|답|답변)(?:은|는|이)|(?:최종 ?)?(?:정답|답변|답)",
    "es": r"(?:la )?respuesta(?: final| correcta)?(?: es| sería)|(?:la )?respuesta(?: final| correcta)?|(?:la )?solución es",
    "fr": r"(?:la )?réponse(?: finale| correcte)?(?: est| serait)|(?:la )?réponse(?: finale| correcte)?|(?:la )?solution est",
    "de": r"(?:die )?(?:endgültige |richtige |finale )?antwort(?: ist| lautet)|(?:die )?(?:endgültige |richtige |finale )?antwort"
    r"|(?:das )?ergebnis (?:ist|lautet|beträgt)|(?:die )?lösung (?:ist|lautet)",
    "pt": r"(?:a )?resposta(?: final| correta)?(?: é| seria)|(?:a )?resposta(?: final| correta)?",
    "it": r"(?:la )?risposta(?: finale| corretta)?(?: è| sarebbe)|(?:la )?risposta(?: finale| corretta)?",
    "nl": r"(?:het )?(?:juiste )?antwoord(?: is| luidt)|(?:het )?antwoord",
    "pl": r"(?:ostateczna )?odpowiedź(?: to| brzmi)|odpowiedź",
    "ru": r"(?:окончательный |правильный |верный )?ответ(?: равен| это| есть)|(?:окончательный |правильный )?ответ",
    "uk": r"(?:остаточна |правильна )?відповідь(?: це| дорівнює)|відповідь",
    "tr": r"(?:doğru |nihai |son )?(?:cevap|yanıt)",
    "vi": r"(?:đáp án|câu trả lời|kết quả)(?: cuối cùng| đúng)?(?: là)|(?:đáp án|đáp số)",
    "id": r"(?:jawaban)(?: akhir(?:nya)?)?(?:nya)?(?: adalah| ialah)|jawaban(?: akhir)?",
    "ar": r"(?:الجواب|الإجابة|الاجابة)(?: النهائي| النهائية| الصحيحة)?(?: هو| هي)|(?:الجواب|الإجابة|الاجابة)(?: النهائي| النهائية)?",
    "sv": r"(?:det )?(?:slutliga |rätta )?svaret (?:är|er|blir)|(?:slutligt )?svar",
    "cs": r"(?:konečná |správná )?odpověď(?: je| zní)|(?:konečná )?odpověď",
    "fi": r"(?:lopullinen |oikea )?vastaus(?: on)?",
    "ro": r"răspunsul(?: final| corect)?(?: este)|răspuns(?: final)?",
    "hu": r"a (?:végső |helyes )?válasz",
    "el": r"(?:η )?(?:τελική |σωστή )?απάντηση(?: είναι)?",
    "th": r"คำตอบ(?:สุดท้าย)?(?:คือ)?",
    "he": r"התשובה(?: הסופית| הנכונה)?(?: היא)?|תשובה",
    "fa": r"(?:پاسخ|جواب)(?: نهایی| صحیح)?",
    "hi": r"(?:अंतिम |सही )?(?:उत्तर|जवाब)",
}
# A phrase with a verb ("is", "是", "は") needs nothing after it; a bare noun needs a colon, or a heading's line end.
_VERB = re.compile(
    r"(?: is| equals| be| comes out to| =|是|为|為|等于|等於|は|が|은|는|이| es| sería| est| serait| ist| lautet| beträgt| é| seria| è"
    r"| sarebbe| luidt| to| brzmi| равен| это| есть| це| дорівнює| là| adalah| ialah| هو| هي| är| er| blir| je| zní| on| este| είναι|คือ| היא)$",
    re.I,
)
ANNOUNCE = re.compile(
    r"(?P<phrase>"
    + "|".join(f"(?:{pattern})" for pattern in _WORDS.values())
    + r")(?P<mark>[ \t]*[*_]{0,3}[ \t]*(?:】[ \t]*[:：]?|[:：=]|[-–—](?=[ \t])|है)?[ \t]*[*_]{0,3}[:：]?[ \t]*)",
    re.I,
)
# "So 7 is the answer.": said the other way round, in the last sentence.
_BACKWARDS = re.compile(
    r"(?:^|[.!?\n]\s+)(?:(?:so|hence|thus|therefore)\b,?\s+)?([^!?\n]{1,80}?)\s+is\s+(?:the|our|my)\s+(?:(?:final|correct|right)\s+)*answer[ .!*]*$",
    re.I,
)
_GSM = re.compile(r"^####[ \t]*(\S.*)$", re.M)  # GSM8K's own marker
_BRACE = re.compile(r"\\.|[{}]", re.S)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BETWEEN = re.compile(
    r"(?:[\s$,;，、。；]|\\[()\[\],;]|\\text\{?|\\quad|\\qquad|\}|and|or|и|или|y|et|und|oder|或者|或|和|及|と|[*])*",
    re.I,
)
_MATH_SPAN = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.S)
_CLAUSE = re.compile(
    r"(?:[.!?](?=\s|$|[*_]))|[。！？]|[,;]?\s(?:because|since|which|where|as we|so that|given that|not|rather than|instead of|car|porque|weil|denn|因为)\b|(?:，|, )(?:因为|since|because)",
    re.I,
)


def find_answer(text: str, delimiters: tuple[str, str] = THINK) -> Extracted:
    """The final answer of a completion, stripped of markdown and of the sentence around it."""
    visible = after_reasoning(text, delimiters)
    if visible is None:
        return Extracted(None, detail="no answer: the reasoning never ended")
    blocks = answer_blocks(visible)
    if blocks:
        answers = {" ".join(inner(block).split()) for block in dict.fromkeys(blocks)}
        if len(answers) > 1:
            return Extracted(None, "tag", "two different <answer> blocks")
        answer = answers.pop()
        return (
            Extracted(answer, "tag")
            if answer
            else Extracted(None, "tag", "no answer: the <answer> block is empty")
        )
    found = in_prose(visible)
    if found is not None:
        return found
    line = visible.strip()
    if (
        line
        and len(line) <= BARE
        and "\n" not in line
        and "<answer>" not in line
        and "boxed" not in line
    ):
        return Extracted(tidy(line), "bare")
    return Extracted(None, detail="no answer")


def inner(block: str) -> str:
    """The answer inside an <answer> block: its box, its announced answer, or all of it."""
    found = in_prose(block)
    return (found.answer or "") if found is not None else tidy(block)


def after_reasoning(text: str, delimiters: tuple[str, str]) -> str | None:
    """What follows the end of the reasoning; None where the reasoning was opened and never closed."""
    opening, closing = delimiters
    at = text.rfind(closing)
    rest = text[at + len(closing) :] if at >= 0 else text
    return None if opening in rest else rest


def answer_blocks(text: str) -> list[str]:
    """The contents of the closed `<answer>` blocks, innermost opening first."""
    blocks: list[str] = []
    at = 0
    while True:
        end = text.find("</answer>", at)
        if end < 0:
            return blocks
        start = text.rfind("<answer>", at, end)
        if start >= 0:
            blocks.append(text[start + 8 : end].strip())
        at = end + 9


def in_prose(text: str) -> Extracted | None:
    """The last box, or an announced answer; an announcement after the last box corrects it."""
    boxed = last_boxes(text)
    said = announced(text[boxed[1] :] if boxed else text)
    if boxed is None:
        return Extracted(said, "announced") if said else None
    if said and re.match(r"[-+$\\(\[{0-9.]", said):
        return Extracted(said, "announced")
    return (
        Extracted(boxed[0], "boxed")
        if boxed[0]
        else Extracted(None, "boxed", "no answer: the box is empty")
    )


def last_boxes(text: str) -> tuple[str, int] | None:
    """The last balanced box and where it ends; boxes with only "and", "or" or a comma between them are one answer."""
    spans: list[
        tuple[int, int, int]
    ] = []  # start of the command, of its content, end of its content
    at, tail = len(text), max(0, len(text) - TAIL)
    for _ in range(MAX_BOXES):
        at = max(text.rfind("\\boxed", tail, at), text.rfind("\\fbox", tail, at))
        match = _BOX.match(text, at) if at >= 0 else None
        if at < 0:
            break
        end = closing_brace(text, match.end()) if match else -1
        if match is None or end < 0:
            continue
        if spans:
            between = text[end + 1 : spans[0][0]]
            if end >= spans[0][0] or len(between) > 40 or not _BETWEEN.fullmatch(between):
                break
        spans.insert(0, (at, match.end(), end))
    if not spans:
        return None
    contents = [text[start:end].strip() for _, start, end in spans]
    joined = contents[0]
    for i, content in enumerate(contents[1:]):
        between = text[spans[i][2] + 1 : spans[i + 1][0]].lower()
        either = re.search(r"\b(?:or|oder)\b|或", between)
        joined += f" or {content}" if either else f", {content}"
    return joined.strip(" ,") if any(contents) else "", spans[-1][2] + 1


def closing_brace(text: str, start: int) -> int:
    """The index of the brace that closes the one before `start`, or -1. Escaped braces do not count."""
    depth = 1
    for match in _BRACE.finditer(text, start, start + TAIL):
        sign = match.group()
        depth += (sign == "{") - (sign == "}")
        if not depth:
            return match.start()
    return -1


def announced(text: str) -> str | None:
    """The last announced answer of a text, or None."""
    tail = text[-TAIL:]
    for match in reversed(list(_GSM.finditer(tail))):
        if not ANNOUNCE.match(match.group(1)):
            return tidy(match.group(1))
    for match in reversed(list(ANNOUNCE.finditer(tail))):
        mark, rest = match.group("mark"), tail[match.end() :]
        if match.start() and tail[match.start() - 1].isalpha() and tail[match.start()].isascii():
            continue  # the middle of a word
        line, _, following = rest.partition("\n")
        heading = not line.strip(" \t*_#:：")
        if not (_VERB.search(match.group("phrase")) or re.search(r"[】:：=है—–-]", mark) or heading):
            continue
        said = (
            line
            if not heading
            else next((part for part in following.split("\n") if part.strip(" *_#")), "")
        )
        said = tidy(clause(said))
        if said:
            return said
    backwards = _BACKWARDS.search(tail[-BARE:].rstrip())
    return tidy(backwards.group(1).rpartition(". ")[2]) if backwards else None


def clause(said: str) -> str:
    """The value at the start of a sentence: a formula with its unit, a bold phrase, or the first clause."""
    said = said.strip()
    math = _MATH_SPAN.match(said)
    if math:
        end = math.end()
        while more := re.match(r"\s*(?:,|;|and|or|和|或|、|,\s*and)\s*", said[end:]):
            further = _MATH_SPAN.match(said, end + more.end())
            if not further:
                break
            end = further.end()
        unit = re.match(r"\s*[\w%°²³/^]+(?=\s*[.。]?\s*$)", said[end:])
        return said[: end + (unit.end() if unit else 0)]
    bold = re.match(r"(\*\*|__)(.+?)\1", said)
    if bold:
        return bold.group(2)
    cut = _CLAUSE.search(said)
    return said[: cut.start()] if cut else said


def tidy(answer: str) -> str:
    """Without the markdown, quotes and full stop around it."""
    answer = answer.strip()
    for _ in range(4):
        before = answer
        answer = answer.strip(" \t\r\n")
        for mark in ("**", "__", "`", "*"):
            if len(answer) > 2 * len(mark) and answer.startswith(mark) and answer.endswith(mark):
                answer = answer[len(mark) : -len(mark)]
        if answer.startswith("**") and answer.count("**") == 1:
            answer = answer[2:]
        if answer.endswith("**") and answer.count("**") == 1:
            answer = answer[:-2]
        if (
            len(answer) > 1
            and answer[-1] in ".。"
            and answer[-2:] != ".."
            and not answer.endswith("。。")
        ):
            answer = answer[:-1]
        if answer == before:
            return answer
    return answer
