"""Multiple choice: the letter, the text of the choice, or both.

`problem.choices` are the texts in order A, B, C, …; `problem.reference` is a letter, an index
("0"), the text of the right choice, or several letters ("A,C") if more than one choice is right:
then exactly those must be named.
"""

from __future__ import annotations

import re
import string

from curate.records import Problem
from curate.verify.base import CORRECT, Judgement, Verifier
from curate.verify.extract import (
    TAIL,
    Extracted,
    announced,
    corrected_line,
    find_answer,
    from_json,
    is_denied,
    is_refused,
    is_taken_back,
    last_boxes,
    stated_instead,
    tidy,
    value_of,
    visible_text,
)
from curate.verify.math.verifier import compare_answers
from curate.verify.text import is_question, leading_letters, normal, text_of_choice, without_style

# Phrases that announce a choice; the letter follows. Those of `extract.ANNOUNCE` count as well.
_ANNOUNCED = re.compile(
    r"(?P<phrase>\b(?:the |my |our )?(?:(?:correct|right|best|final|appropriate) )+(?:option"
    r"|choice|letter|statement)s?"
    r"(?: is| are| would be)?"
    r"|\b(?:the )?(?:option|choice|letter) (?:is|would be)|\b(?:solution|result|option|choice"
    r"|selection)(?=\s*[*_]*[:：])"
    r"|\b(?:I|we)(?: would|['’]d|['’]ll| will)? (?:choose|pick|select|go with|opt for)"
    r"(?: (?:option|choice|answer))?"
    r"|(?:^|(?<=[.!?\n])) *(?:choose|selected|select|correct|right|answer|ans\.?)"
    r"(?: (?:option|choice))?"
    r"|\bthe (?:right|correct|best) one is"
    r"|(?:^|(?<=[.!?\n,;:])) *(?:vậy )?(?:chọn(?: đáp án)?|đáp án)(?: đúng là| là)?"
    r"|(?:^|(?<=[.!?\n])|\b(?:so|thus|hence|therefore|think|believe),?) *\bit(?:['’]s| is| must be"
    r"| should be| has to be)(?: (?:option|choice))?|\brichtig ist"
    r"|(?<![不没别非])(?:因此|所以|故|答案)?(?:应|應)?(?:该|該)?[选選](?:择|擇)?(?:项|項)?(?:是"
    r"|为|為)?|正确(?:的)?选项(?:是|为)?|正确的(?:是|为)"
    r"|选项(?:是|为)"
    r"|\b(?:opción|option|alternativa|opzione) (?:correcta|correcte|correta|corretta)"
    r" (?:es|est|é|è)(?: la)?\b"
    r"|\b(?:respuesta|resposta|risposta|réponse)(?: correcta| correta| corretta| correcte| final)?"
    r" (?:es|est|é|è) (?:la |a |l['’])?(?:opción|letra|opção|alternativa"
    r"|option|lettre|lettera|opzione)"
    r"|選択肢は|정답은|답은)"
    r"(?P<mark>[\s*_]*[:：]?[\s*_]*)(?=[(\[（【$\\*_`\"“]*\s*(?:[A-Za-z]"
    r"|[A-J]{2,8})(?![A-Za-z]))",
    re.I,
)
# "Option C is correct.", "(C) is the right answer"
_IS_CORRECT = re.compile(
    r"(?:^|[.!?\n,;]\s*|\b(?:so|thus|hence|therefore|only)\s+)(?i:(?:option|choice|answer"
    r"|statement)\s+)?[(\[*$]*"
    r"(?P<letter>[A-J])[)\]*$]*\s+is\s+(?:the\s+)?(?:correct|right|best)(?:\s+(?:answer|option"
    r"|choice|one))?"
    r"(?P<after>.*)",
    re.S,
)
# Bが正解です, B是正确的
_IS_CORRECT_HAN = re.compile(
    r"(?:^|[、,，。\s]|选项|選択肢|所以|因此|故)[(（]?(?P<letter>[A-J])[)）]?(?:项|選択肢)?(?:(?:が|は)(?:正解"
    r"|正しい)(?:です|である|だ)?"
    r"|(?:是)?(?:正确|對|对)(?:的)?(?:答案|选项|选择)?|(?:이|가) 정답(?:입니다|이다)?)[。.．]?\s*$"
)
# "A is incorrect, so B."
_SO = re.compile(
    r"(?:^|.*[,;.]\s*)(?:so|therefore|thus|hence)[,:]?\s+(?P<answer>[(\[*$]*[A-J][)\]*$]*)[.!]?",
    re.S,
)
_LAST_LINE = re.compile(
    r"(?:(?:so|thus|hence|therefore|因此|所以"
    r"|故)[,:，：]?\s*)?(?P<answer>[(\[（【*$`\\]*[A-J](?![A-Za-z]).*)",
    re.I | re.S,
)


class ChoiceVerifier(Verifier):
    """Compares the choices that an answer names with the right ones."""

    name = "choice"
    version = "6"

    def extract(self, problem: Problem, completion: str, delimiters: tuple[str, str]) -> Extracted:
        extracted = find_choice(completion, delimiters, problem.choices or [])
        if extracted.where == "announced" and re.fullmatch(r"[A-J]!", extracted.answer or ""):
            return extracted._replace(answer=(extracted.answer or "")[:-1])  # "The answer is C!"
        return extracted

    def unverifiable(self, problem: Problem) -> str | None:
        if not (problem.reference or "").strip():
            return "no reference answer"
        return None if right_letters(problem) else "the reference names none of the choices"

    def quick(self, problem: Problem, answer: str) -> Judgement:
        right, named = right_letters(problem), named_letters(answer, problem.choices or [])
        if not named:
            return Judgement("wrong", "names no choice")
        if named == right:
            return CORRECT
        several = "several choices: " if len(named) > 1 else ""
        return Judgement("wrong", f"names {several}{', '.join(sorted(named))}")


def find_choice(text: str, delimiters: tuple[str, str], choices: list[str]) -> Extracted:
    """Return the answer to a multiple-choice question: like `find_answer`, with the phrases that
    name a choice.
    """
    visible = visible_text(text, delimiters)
    if visible is None or "<answer>" in visible or from_json(visible):
        return find_answer(text, delimiters)
    box = last_boxes(visible)
    tail = (visible[box.end :] if box else visible)[-TAIL:]
    last = None
    for match in _ANNOUNCED.finditer(tail):
        last = match
    general = announced(tail)
    if last is not None and (
        general is None
        or general.answer is None
        or not named_letters(tidy(general.answer), choices)
    ):
        if is_denied(tail[: last.start()], last["phrase"]):
            return Extracted(None, "announced", "no answer")
        line, _, following = tail[last.end() :].partition("\n")
        value, following = value_of(line, following)
        value = _TRUE_HAN.sub("", value)
        if following.lstrip().startswith("?"):
            return Extracted(None, "announced", "the text takes its answer back")
        if is_taken_back(following):
            instead = stated_instead(following)
            if instead is None:
                return Extracted(None, "announced", "the text takes its answer back")
            value = instead
        return Extracted(tidy(value), "announced")
    if box is None and general is None:
        confirmations = list(_IS_CORRECT.finditer(tail))
        letters = {match["letter"] for match in confirmations}
        if (
            confirmations
            and len(letters) == 1
            and not _UNCONFIRMED.search(confirmations[-1]["after"])
        ):
            return Extracted(confirmations[-1]["letter"], "announced")
        whole = visible.strip()
        if in_han := _IS_CORRECT_HAN.search(whole):
            return Extracted(in_han["letter"], "announced")
        if _is_list_of_choices(whole, choices):
            return Extracted(whole, "bare")
        if "\n" not in whole and named_letters(tidy(whole), choices):
            return Extracted(tidy(whole), "bare")
        if "\n" not in whole and _OTHERS_DENIED.fullmatch(whole):
            return Extracted(tidy(whole), "bare")
        if "\n" not in whole and (corrected := corrected_line(whole)):
            return corrected._replace(answer=corrected.answer and tidy(corrected.answer))
        if first := _first_paragraph(whole, choices):
            return Extracted(first, "first line")
        before, _, line = whole.rpartition("\n")
        line = line.strip()
        if before and is_refused(before):
            return find_answer(text, delimiters)
        if (so := _SO.fullmatch(line)) and not _UNSURE.search(line):
            return Extracted(tidy(so["answer"]), "last line")
        final = _LAST_LINE.fullmatch(line) if "\n" in whole or len(line) < 20 else None
        listed = re.findall(r"^[ \t]*[(]?([A-J])[).:]", visible, re.M)
        if len(set(listed)) > 1:
            final = None  # the choices themselves, repeated
        if final and named_letters(tidy(final["answer"]), choices):
            return Extracted(tidy(final["answer"]), "last line")
    return find_answer(text, delimiters)


# 选项C是正确的
_TRUE_HAN = re.compile(r"(?<=[A-J])\s*(?:项)?(?:是)?(?:正确|對|对)的?(?:选项|答案|选择)?\s*$")
_UNCONFIRMED = re.compile(
    r"\b(?:not|no|if|or|wrong|false|doubt\w*|unless|only when|unsure|maybe|perhaps|possibly|but"
    r"|wait|actually|kidding)\b|n['’]t\b|^\s*[?？]|吗",
    re.I,
)
_UNSURE = re.compile(r"\b(?:if|unless|maybe|perhaps|possibly|or|could|might|may)\b|\?", re.I)


_NAMES_ANOTHER = re.compile(r"(?<![A-Za-z])(?:[B-HJ]|\(A\)|[Oo]ption A)(?![A-Za-z'’])")


def _first_paragraph(text: str, choices: list[str]) -> str | None:
    """Return the first paragraph if it is a choice with its text, and the rest, an explanation,
    names no letter and takes nothing back.
    """
    first, _, rest = text.partition("\n\n")
    if not rest or "\n" in first or len(first) > 300:
        return None
    answer = tidy(first)
    if not _LABELLED.match(answer) or len(named_letters(answer, choices)) != 1:
        return None
    if _NAMES_ANOTHER.search(rest) or is_taken_back(rest) or _UNCONFIRMED.search(rest):
        return None
    return answer


def _is_list_of_choices(text: str, choices: list[str]) -> bool:
    """Whether each line of a text names one choice, and not all choices are written out again."""
    lines = text.split("\n")
    if not 1 < len(lines) < len(choices):
        return False
    return all(len(named_letters(tidy(line), choices)) == 1 for line in lines)


def right_letters(problem: Problem) -> set[str]:
    """Return the letters of the right choices; empty if the reference names none."""
    reference, choices = (problem.reference or "").strip(), problem.choices or []
    named = named_letters(reference, choices)
    if not named:
        extracted = announced(reference)
        named = (
            named_letters(tidy(extracted.answer), choices)
            if extracted and extracted.answer
            else set()
        )
    if named:
        are_offered = not choices or all(
            string.ascii_uppercase.index(one) < len(choices) for one in named
        )
        return named if are_offered else set()
    if reference.isdigit() and int(reference) < len(choices):
        return {string.ascii_uppercase[int(reference)]}
    return set()


def named_letters(answer: str, choices: list[str]) -> set[str]:
    """Return the letters that an answer names, by letter or by the text of a choice."""
    if len(answer) > 10_000:
        return set()
    bare = without_style(answer)
    if (others := _OTHERS_DENIED.fullmatch(bare)) and (kept := others["kept"].rstrip(" .,;。，")):
        letters = named_letters(kept, choices)
        denied = set(re.findall(r"(?<![A-Za-z])[A-J](?![A-Za-z])", others["denied"]))
        return letters if not letters & denied else set()
    by_text = _letters_of_text(bare, choices)
    if by_text:
        return by_text if len(by_text) == 1 else set()
    letters, rest = leading_letters(bare)
    if letters:
        text = text_of_choice(rest)
        if text is None:  # "B. False", "C (mice)", with the very words of the choice
            own = _OWN_TEXT.fullmatch(rest)
            own_text = next(filter(None, own.groups()), "") if own else ""
            text = own_text if own_text and _letters_of_text(own_text, choices) == letters else None
        if text is None and rest[:1] in ",，":  # "B, cats"
            text = rest[1:].strip() if _letters_of_text(rest[1:], choices) == letters else None
        if any(string.ascii_uppercase.index(one) >= len(choices) for one in letters if choices):
            return set()
        if text is not None:
            # "B. dogs" names B and the choice whose text that is.
            return letters | (_letters_of_text(text, choices) if text else set())
        return _named_in_parts(bare, choices)
    match = re.fullmatch(r"(.*\S)\s*(?:[(\[（]([A-J])[)\]）]|, so ([A-J]))", bare, re.S)  # "8 (B)"
    if match:
        letter = match[2] or match[3]
        return (
            {letter} | _letters_of_text(match[1], choices)
            if _letters_of_text(match[1], choices)
            else set()
        )
    return _named_in_parts(bare, choices)


_OWN_TEXT = re.compile(r"\s*(?:[.:：)、]|[-–—]\s)\s*(.+)|\s*[(（](.+)[)）]", re.S)
# "D, it can't be A or B": the denial is about other choices
_OTHERS_DENIED = re.compile(
    r"(?P<kept>.{1,200}?)(?:[.,;:。，；]\s*|\s+|(?=不是|而不是))(?:and\s+)?(?:because\s+|since\s+)?(?:(?:it|this"
    r"|that)\s*)?"
    r"(?:can(?:['’]t|not) be|is ?n[o'’]t|does(?:n['’]t| not) make sense for it to be|not|non"
    r"|nicht|pas"
    r"|no es|不是|而不是|не)\s*(?P<denied>\(?[A-J]\)?(?:\s*(?:,|/|or|and|nor|或|和"
    r"|、)\s*\(?[A-J]\)?)*)[.。]?",
    re.S,
)
_PARTS = re.compile(r"\s*(?:[,;，；、\n]\s*(?:and\s+)?|\band\b|和|及)\s*")


def _named_in_parts(bare: str, choices: list[str]) -> set[str]:
    """Return the letters that the parts of a list name, one each: "A. dogs, C. mice", "dogs and
    mice".
    """
    parts = _PARTS.split(bare)
    if not 1 < len(parts) <= len(choices):
        return set()
    named = [named_letters(part, choices) for part in parts if part]
    letters = {letter for one in named for letter in one}
    is_list = all(len(one) == 1 for one in named) and len(letters) == len(named)
    return letters if is_list else set()


def _letters_of_text(text: str, choices: list[str]) -> set[str]:
    """Return the letters of the choices with this text; all of them if several are equal."""
    return {
        string.ascii_uppercase[i]
        for i, choice in enumerate(choices[:26])
        if matches_choice(choice, text)
    }


_LABELLED = re.compile(
    r"\s*(?:\\(?:text|textbf|mathrm|mathbf)\s*\{\s*)?(?:\([A-J]\)|[A-J]\s*[.:)])\s*\}?"
)


def matches_choice(choice: str, answer: str) -> bool:
    """Whether an answer is the text of a choice: the same words, or the same mathematical
    object.
    """
    if is_question(answer) and not is_question(choice):
        return False
    first, second = normal(choice), normal(answer)
    if first == second or first.removeprefix("it ") == second:
        return True
    if len(choice) > 300 or len(answer) > 300:
        return False
    if not re.search(r"\d|\\", choice) or not re.search(r"\d|\\|^[a-z -]{3,40}$", answer, re.I):
        return False
    if _LABELLED.match(answer) and not _LABELLED.match(choice):
        return False  # "(D) 18" names D as well
    judgement = compare_answers(choice, answer)
    return judgement is not None and judgement.verdict == "correct"
