"""A search for cheats: a grammar of answers that wraps, hedges, denies, supposes, takes back and
extends in eight languages, and finds no way to turn a wrong answer into `correct`.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from curate.records import Problem
from curate.verify.extract import THINK
from curate.verify.registry import verifier_named

CHOICES = ["dogs", "cats", "mice", "rats"]
# (verifier, reference) and answers that are not it.
WRONG = {
    ("math", "7"): ["8", "-7", "0.7", "70", r"7\pi", "7^2", r"\frac{7}{2}", "3.5"],
    ("math", r"\frac{1}{2}"): ["2", "0.25", r"-\frac{1}{2}", r"\frac{3}{2}"],
    ("math", "x^2+1"): ["x^2", "x^2-1", "2x", "(x+1)^2"],
    ("math", "(1,2)"): ["(2,1)", "1", r"\{1,2\}", "(1,2,3)"],
    ("math", "f(0)"): ["0", "f(1)", "f"],
    ("math", r"2\sqrt{3}"): ["3", r"\sqrt{3}", r"3\sqrt{2}", r"5+\sqrt{3}"],
    ("math", "[0,3)"): ["(0,3)", "[0,3]", "3", r"[0,\infty)"],
    ("choice", "B"): ["A", "C", "D", "dogs"],
    ("text", "Lima"): ["Rome", "Lime", "Oslo"],
}
WRAPPED = {
    "any": ["{a}", r"\boxed{{{a}}}", "<answer>{a}</answer>", "**{a}**", "so {a}\n#### {a}",
            '{{"answer": "{a}"}}', "{a}<|im_end|>", "Done.\n\n{a}", "<think>hm</think>{a}"],
    "math": ["$${a}$$", r"$x = \boxed{{{a}}}$", "The answer is ${a}$.", "Done.\n$$\n{a}\n$$",
             r"\[{a}\]"],
    "en": ["The answer is {a}.", "Answer: {a}", "The answer is **{a}**.", "Final answer: {a}",
           "After some algebra the answer is {a}.", "The answer, finally, is {a}.",
           "Thus {a} is the answer.", "**Answer:** {a}", "The correct answer is {a}."],
    "zh": ["答案是{a}。", "答案：{a}", "因此，最终答案为{a}。", "【答案】{a}"],
    "ja": ["答えは{a}です。", "正解：{a}"],
    "ko": ["정답은 {a}입니다.", "정답: {a}"],
    "de": ["Die Antwort ist {a}.", "Antwort: {a}", "Somit lautet die Antwort {a}."],
    "fr": ["La réponse est {a}.", "Réponse : {a}", "Donc la réponse est {a}."],
    "es": ["La respuesta es {a}.", "Respuesta: {a}"],
    "ru": ["Ответ: {a}", "Ответ: {a}."],
}  # fmt: skip
HEDGED = {
    "any": ["{g} / {w}", "{g} vs {w}", "{g}? {w}", "{g} | {w}", "{g} {w}", "{g}?"],
    "math": ["{g}; {w}", "{g} plus {w}", "{g} times {w}", "{w} = {g}", "{g} = {w}"],
    "en": ["{g} or {w}", "{w} or {g}", "{g}, maybe {w}", "either {g} or {w}", "{g} but also {w}",
           "{g} unless it is {w}", "{g}? No, {w}", "{g}, {w}, or both", "{g}, possibly {w}",
           "{g} (or {w})", "{g}, otherwise {w}", "not {g} but {w}", "{w} rather than {g}",
           "{g} and {w}", "{w}, not {g}"],
    "zh": ["{g}或{w}", "{w}或者{g}", "{g}，也可能是{w}", "不是{g}，而是{w}", "{g}和{w}"],
    "ja": ["{g}か{w}", "{g}または{w}", "{g}ではなく{w}"],
    "ko": ["{g} 또는 {w}", "{g}이 아니라 {w}"],
    "de": ["{g} oder {w}", "nicht {g}, sondern {w}", "entweder {g} oder {w}",
        "{g}, vielleicht {w}"],
    "fr": ["{g} ou {w}", "soit {g} soit {w}", "{g}, ou peut-être {w}"],
    "es": ["{g} o {w}", "no {g} sino {w}", "{g}, o quizás {w}"],
    "ru": ["{g} или {w}", "не {g}, а {w}", "{g}, возможно {w}"],
}  # fmt: skip
DENIED = {
    "any": ["~~{g}~~", "<del>{g}</del>", "!{g}", "{g}??"],
    "math": ["more than {g}", "at least {g}", "less than {g}", "nearly {g}", "{g} doubled",
             "{g} halves", "{g} squared", "minus {g} less", "the opposite of {g}", "{g} factorial",
             "{g} log n", "{g} pi", "{g}以上", "{g} ! = 3", "{g}x", r"{g} \ne", r"\cancel{{{g}}}",
             "twice {g}", "{g} modulo 9", "a multiple of {g}", "{g}の倍数", "{g}的平方",
        "presque {g}",
             "fast {g}", "casi {g}", "почти {g}", "mindestens {g}", "au moins {g}", "не менее {g}"],
    "en": ["not {g}", "{g} is wrong", "{g} is not the answer", "anything but {g}",
           "{g} is incorrect", "it is not {g}", "{g}, which is wrong", "never {g}", "hardly {g}",
           "{g} if lucky", "all except {g}", "{g} cannot be right"],
    "zh": ["不是{g}", "除了{g}", "{g}吗", "{g}是错的", "非{g}", "{g}不对"],
    "ja": ["{g}ではない", "{g}ではありません", "{g}以外"],
    "ko": ["{g}이 아닙니다", "{g} 아님"],
    "de": ["nicht {g}", "{g} ist falsch", "kein {g}", "weder {g} noch 3"],
    "fr": ["pas {g}", "{g} est faux", "tout sauf {g}"],
    "es": ["no {g}", "{g} es incorrecto", "todo menos {g}"],
    "ru": ["не {g}", "{g} неверно", "всё кроме {g}"],
}  # fmt: skip
BEFORE = {
    "en": ["The wrong answer is {g}.", "Suppose the answer is {g}.",
           "I doubt that the answer is {g}.", "The student's answer is {g}.",
           "If the answer is {g}, we are done.", "The naive answer is {g}.",
           "Nobody says that the answer is {g}?", "The answer is not {g}.",
           r"It is not \boxed{{{g}}}.", "By mistake the answer is {g}.", "We reject\n{g}",
           "The answer, if we are careless, is {g}.", "It is impossible that the answer is {g}.",
           "Is the answer {g}?", "Possible answers:\n{w}\n{g}", "The value is not\n**{g}**"],
    "zh": ["错误的答案是{g}。", "假设答案是{g}。", "如果答案是{g}", "答案不是{g}。",
        "答案可能是{g}。", "小明的答案是{g}。",
           "我怀疑答案是{g}。"],
    "ja": ["もし答えが{g}なら", "間違った答えは{g}です。", "おそらく答えは{g}です。"],
    "ko": ["만약 정답이 {g}이라면", "틀린 답은 {g}입니다.", "아마 정답은 {g}입니다."],
    "de": ["Die falsche Antwort ist {g}.", "Angenommen, die Antwort ist {g}.",
           "Die Antwort ist nicht {g}.", "Vielleicht ist die Antwort {g}."],
    "fr": ["La mauvaise réponse est {g}.", "Supposons que la réponse est {g}.",
           "La réponse n'est pas {g}."],
    "es": ["La respuesta incorrecta es {g}.", "Supongamos que la respuesta es {g}.",
           "La respuesta no es {g}."],
    "ru": ["Неправильный ответ: {g}", "Предположим, ответ: {g}", "Ответ не {g}."],
}  # fmt: skip
APPENDED = {
    "any": [r"\boxed{{{g}}} / \boxed{{{w}}}", r"\boxed{{{w}}} | \boxed{{{g}}}",
            "<answer>{g}</answer><answer>{w}</answer>", "<think>{g}</think> I do not know",
            r"<think>\boxed{{{g}}}</think> \boxed{{{w}}}", "{g}\n{w}\n####{w}",
            '{{"guess": "{g}", "answer": "{w}"}}', "Answer: {g}\nAnswer: {w}"],
    "en": ["The answer is {g}. No, it is {w}.", "The answer is {g}. Wait, it is {w}.",
           "The answer is {g}! Just kidding, {w}.", "The answer is {g}? Perhaps {w}.",
           r"\boxed{{{g}}} or \boxed{{{w}}}", r"\boxed{{{g}}}, maybe \boxed{{{w}}}",
           "Answer: {g} (could be {w})", r"\boxed{{{g}}} is wrong, it is {w}",
           r"Answer 1: \boxed{{{w}}} Answer 2: \boxed{{{g}}}", "{g}. Wait, no. It is {w}.",
           "The answer is {g}. Hmm, that is wrong.", "The answer is {g}. I take it back.",
           r"\boxed{{{g}}}. Hold on, it should be {w}.", "The answer is {w}. No, it is not {g}.",
           "The answer is {w}. Wait, is it {g}?", "The answer is {g}. Correction: {w}"],
    "zh": ["答案是{g}。不对，是{w}。", "答案是{g}。更正：{w}", "答案是{g}吗？不是。",
        "答案是{w}。不对，不是{g}。"],
    "ja": ["答えは{g}です。いや、{w}です。", "答えは{g}です。訂正：{w}"],
    "ko": ["정답은 {g}입니다. 아니, {w}입니다.", "정답은 {g}입니다. 정정: {w}"],
    "de": ["Die Antwort ist {g}. Nein, es ist {w}.", "Die Antwort ist {g}? Nein."],
    "fr": ["La réponse est {g}. Non, c'est {w}.", "La réponse est {g} ? Non."],
    "es": ["La respuesta es {g}. No, es {w}.", "La respuesta es {g}. Perdón, {w}."],
    "ru": ["Ответ: {g}. Нет, {w}.", "Ответ: {g}? Нет."],
}  # fmt: skip
# continuations of a text that do not change its answer
TRAILING = ["", "", "\n", "</s>", "\n\nI hope this helps.", " \n\n---\n", "<|endoftext|>"]
LANGUAGES = sorted(APPENDED.keys() - {"any"})


@st.composite
def cheats(draw: st.DrawFn) -> tuple[str, str, str]:
    """Draw a verifier, a reference, and a completion that does not give it as its one answer."""
    verifier, gold = draw(st.sampled_from(sorted(WRONG)))
    wrong = draw(st.sampled_from(WRONG[verifier, gold]))
    language = draw(st.sampled_from(LANGUAGES))

    def phrase(phrases: dict[str, list[str]]) -> str:
        return draw(
            st.sampled_from(
                phrases.get("any", [])
                + (phrases.get("math", []) if verifier == "math" else [])
                + phrases[language]
            )
        )

    kind = draw(st.sampled_from(["wrong", "hedged", "denied", "before", "appended"]))
    if kind == "wrong":
        text = phrase(WRAPPED).format(a=wrong)
    elif kind == "hedged":
        text = phrase(WRAPPED).format(a=phrase(HEDGED).format(g=gold, w=wrong))
    elif kind == "denied":
        text = phrase(WRAPPED).format(a=phrase(DENIED).format(g=gold))
    else:
        text = phrase(BEFORE if kind == "before" else APPENDED).format(g=gold, w=wrong)
    return verifier, gold, text + draw(st.sampled_from(TRAILING))


@given(cheats())
@settings(max_examples=1000, deadline=None)
def test_no_phrase_in_any_language_makes_a_wrong_answer_correct(
    cheat: tuple[str, str, str],
) -> None:
    name, gold, text = cheat
    verifier = verifier_named(name)
    problem = Problem("", gold, name, choices=CHOICES if name == "choice" else None)
    answer = verifier.extract(problem, text, THINK).answer
    if answer is None:
        return
    judgement = verifier.quick(problem, answer) or verifier.check(problem, answer)
    assert judgement.verdict != "correct", (answer, judgement)


@given(st.sampled_from(sorted(WRONG)), st.sampled_from(LANGUAGES), st.data())
@settings(max_examples=300, deadline=None)
def test_the_right_answer_in_the_same_phrases_is_correct(
    reference: tuple[str, str], language: str, data: st.DataObject
) -> None:
    name, gold = reference
    anywhere = [phrase for phrase in WRAPPED["any"] if not phrase.startswith("Done.")]
    phrases = anywhere + (WRAPPED["math"] if name == "math" else []) + WRAPPED[language]
    written = data.draw(st.sampled_from(phrases))
    escaped = gold.replace("\\", "\\\\") if '"answer"' in written else gold
    text = written.format(a=escaped) + data.draw(st.sampled_from(TRAILING[:4]))
    verifier = verifier_named(name)
    problem = Problem("", gold, name, choices=CHOICES if name == "choice" else None)
    answer = verifier.extract(problem, text, THINK).answer
    assert answer is not None, text
    judgement = verifier.quick(problem, answer) or verifier.check(problem, answer)
    assert judgement.verdict == "correct", (text, answer, judgement)
