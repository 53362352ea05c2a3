"""Find the answer in a completion.

In order: the `<answer>…</answer>` block; the last balanced `\\boxed{…}`; an announced final answer
("the answer is …", in the languages of `_WORDS`); a JSON object with the key `answer`; a completion
that is one short line; a last line that is nothing but a value. Only text after the end of the
reasoning counts.

An announcement is read with its whole sentence. A denial, a supposition or a doubt cancels it, and
so does following text that takes the answer back, unless it states another one ("Wait, it is 6").
Words after the value stay part of the answer, so that a verifier refuses them. Text that is struck
out does not count. Work is linear in the length of the text.
"""

from __future__ import annotations

import ast
import json
import re
from typing import Any, NamedTuple

THINK = ("<think>", "</think>")

# Characters at the end of a text in which announcements are searched for: a megabyte of prose is
# not searched. Ours.
TAIL = 20_000
# Number of boxes to look at, from the last one back.
MAX_BOXES = 20
# A completion of one line up to this length is taken as a bare answer.
BARE = 200


class Extracted(NamedTuple):
    """An answer and the place it came from; or None and the reason why it is missing."""

    answer: str | None
    where: str = ""
    detail: str = ""


# Marks of chat templates for the end of a turn. They are not part of any answer.
_END_TOKENS = re.compile(
    r"</s>|<eo[as]>|<end_of_turn>|<pad>|\[/INST\]|<\|(?:return|endofturn|im_end|eot_id|eom_id|end|eos|endoftext|end_of_text"
    r"|end_of_turn)\|>"
    r"|<｜end▁of▁sentence｜>"
)

# Struck-out text. Two ties in a formula, x=1,~~y=2, are not such a mark.
_STRUCK = re.compile(
    r"(?<![A-Za-z0-9_},;:\\~])~~(?=[^\s~])[^~\n]{0,200}~~(?![A-Za-z0-9_{~]|\\(?![\])]))"
    r"|<(?P<tag>del|strike)>[^<]{0,200}</(?P=tag)>",
    re.I,
)

_INVERTED = re.compile(r"(?:ist|lautet|beträgt) ", re.I)  # "Also ist die Antwort 17"
_DETERMINER = r"(?:the |my |our |your |an )?(?:final |correct |right )*"
# "The answer to this question is", "the answer in lowest terms is", "the answer we get is"
_OF_WHAT = (
    r"(?: to (?:the|this|your|our|that) (?:\w+ )?(?:question|problem|exercise|task|equation|puzzle)"
    r"| to (?:part|question|problem) \(?\w{1,3}\)?"
    r"| in (?:its |the )?(?:simplest|lowest|reduced|simplified|exact|decimal|standard|scientific)"
    r" (?:form|terms|notation)| we (?:get|obtain|find|want|seek|need|are looking for))?"
)
_WORDS = {
    "en": rf"{_DETERMINER}(?:answer|solution|result|reply){_OF_WHAT}"
    r"(?: is| equals| (?:would|should|must|will)(?: then| thus| therefore)? (?:be|equal)"
    r"| comes out to| =)"
    rf"|{_DETERMINER}answer{_OF_WHAT}(?: has to be| (?:comes|works)(?: out)? to(?: be)?"
    r"| turns out to be| becomes| of(?=[ ][*_$(\\]*[-\d\\]))"
    rf"|{_DETERMINER}answers are|(?:the |our )?(?:final )?solutions are"
    rf"|{_DETERMINER}answer|final result",
    "ja": r"(?:最終的な|最終|正しい)?(?:答え|解答|答(?!案)|回答|正解)(?:は|が)"
    r"|(?:最終)?(?:答え|解答|答(?!案)|回答|正解)",
    "zh": r"(?:最终|最后|正确|因此|所以|故)?的?(?:答案|結果|结果|答)"
    r"(?:应该|應該|应当|就|大约|大約|大概|约|約|近似)*(?:是|为|為|等于|等於)|(?:最终|最后"
    r"|正确)?(?:答案|答)",
    "ko": r"(?:최종 ?|따라서 ?)?(?:정답|답|답변)(?:은|는|이)|(?:최종 ?)?(?:정답|답변|답)",
    "es": r"(?:la )?respuesta(?: final| correcta)?(?: es| sería)|(?:la )?respuesta(?: final| "
    r"correcta)?|(?:la )?solución es",
    "fr": r"(?:la )?réponse(?: finale| correcte)?(?: est| serait)|(?:la )?réponse(?: finale| "
    r"correcte)?|(?:la )?solution est",
    "de": r"(?:die )?(?:endgültige |richtige |finale )?antwort(?: ist| lautet)|(?:die "
    r")?(?:endgültige |richtige |finale )?antwort"
    r"|(?:ist|lautet|beträgt) (?:also |somit |daher )?die (?:endgültige |richtige )?antwort"
    r"|(?:das )?ergebnis (?:ist|lautet|beträgt)|(?:die )?lösung (?:ist|lautet)",
    "pt": r"(?:a )?resposta(?: final| correta)?(?: é| seria)|(?:a )?resposta(?: final| correta)?",
    "it": r"(?:la )?risposta(?: finale| corretta)?(?: è| sarebbe)|(?:la )?risposta(?: finale| "
    r"corretta)?",
    "nl": r"(?:het )?(?:juiste )?antwoord(?: is| luidt)|(?:het )?antwoord",
    "pl": r"(?:ostateczna )?odpowiedź(?: to| brzmi)|odpowiedź",
    "ru": r"(?:окончательный |правильный |верный )?ответ(?: равен| это| есть)|(?:окончательный "
    r"|правильный )?ответ",
    "uk": r"(?:остаточна |правильна )?відповідь(?: це| дорівнює)|відповідь",
    "tr": r"(?:doğru |nihai |son )?(?:cevap|yanıt)",
    "vi": r"(?:đáp án|câu trả lời|kết quả)(?: cuối cùng| đúng)?(?: là)|(?:đáp án|đáp số)",
    "id": r"(?:jawaban)(?: akhir(?:nya)?)?(?:nya)?(?: adalah| ialah)|jawaban(?: akhir)?",
    "ar": r"(?:الجواب|الإجابة|الاجابة)(?: النهائي| النهائية| الصحيح| الصحيحة)?(?: هو| هي)|(?:الجواب"
    r"|الإجابة|الاجابة)(?: النهائي| النهائية| الصحيح| الصحيحة)?",
    "sv": r"(?:det )?(?:slutliga |rätta )?svaret (?:är|er|blir)|(?:slutligt )?svar",
    "cs": r"(?:konečná |správná )?odpověď(?: je| zní)|(?:konečná )?odpověď",
    "fi": r"(?:lopullinen |oikea )?vastaus(?: on)?",
    "ro": r"răspunsul(?: final| corect)?(?: este)|răspuns(?: final)?",
    "hu": r"(?:a )?(?:végső |helyes )?válasz",
    "el": r"(?:η )?(?:τελική |σωστή )?απάντηση(?: είναι)?",
    "th": r"คำตอบ(?:สุดท้าย)?(?:คือ)?",
    "he": r"התשובה(?: הסופית| הנכונה)?(?: היא)?|תשובה",
    "fa": r"(?:پاسخ|جواب)(?: نهایی| صحیح)?",
    "hi": r"(?:अंतिम |सही )?(?:उत्तर|जवाब)",
    "bn": r"(?:চূড়ান্ত |সঠিক )?উত্তর(?: হল| হলো)?",
    "te": r"(?:సరైన |తుది )?సమాధానం",
    "sw": r"(?:jibu)(?: la mwisho| sahihi)?(?: ni)?",
}
# A phrase with a verb ("is", "是", "は") needs nothing after it; a bare noun needs a colon, or the
# end of a heading.
_VERB = re.compile(
    r"(?: is| are| equals?| be| (?:comes|works)(?: out)? to| becomes| of| =|是|为|為|等于|等於"
    r"|は|が|은|는|이"
    r"| es| sería| est| serait| ist| "
    r"lautet"
    r"| beträgt| é| seria| è| sarebbe| luidt| to| brzmi| равен| это| есть| це| дорівнює| là| "
    r"adalah| ialah"
    r"| هو| هي| är| er| blir| je| zní| on| este| είναι|คือ| היא| হল| হলো| ni)$",
    re.I,
)
ANNOUNCE = re.compile(
    r"(?P<phrase>"
    + "|".join(f"(?:{pattern})" for pattern in _WORDS.values())
    + r")(?P<mark>[ \t]*[*_]{0,3}[ \t]*(?:】[ \t]*[:：]?|[:：=]|[-–—](?=[ \t])|[-=]+>|[→➡⇒]|है)?[ "
    r"\t]*[*_]{0,3}[:：]?[ \t]*)",
    re.I,
)

# -- words that change what an announcement says

# The word right before "answer is" must be one of these: "the naive answer is 5" announces nothing.
_ALLOWED_BEFORE = frozenset(
    "so thus hence therefore then and that is be the my our your a an final correct right best "
    "true actual real exact "
    "overall numeric numerical required desired simplified complete unique only short calculated "
    "computed resulting "
    "ultimate we get have find obtain conclude see know shows show gives give means implies with "
    "to of as in now here "
    "finally ultimately consequently accordingly i think believe say state submit at us yields "
    "yielding giving reach arrive damit deshalb demnach "
    "la el le les il lo o os en un una une eine der die das den also somit daher folglich "
    "entonces luego donc alors "
    "ainsi então logo quindi dunque dus de het correcta final finale correcte correta corretta "
    "richtige endgültige bonne "
    "juiste svaret slutliga rätta odpověď konečná správná".split()
)
# "After some algebra the answer is": a phrase in front of the subject says how it was obtained.
_HOW = re.compile(
    r"\s*(?:after|by|using|with|from|in|on|upon|for|via|through|combining|simplifying|substituting"
    r"|solving|adding|summing|subtracting|multiplying|dividing|evaluating|plugging|putting|rounding"
    r"|nach|durch|mit|après|avec|par|tras|después|con)\s(?!.*(?:['’]s\b|\b(?:opinion|view|belief"
    r"|eyes|error|guess\w*|mistake\w*|book|key)\b))",
    re.I,
)
_CLAUSE_START = re.compile(
    r"[,;:，；：—]|\b(?:so|thus|hence|therefore|then|and|but|which means|implies|means|because)\b"
    r"|所以"
    r"|因此|故|那么",
    re.I,
)
# In the clause around an announcement these make it a denial, a doubt, a supposition, or somebody
# else's answer.
_DENIED = re.compile(
    r"\b(?:not|never|no|nor|nobody|none|few|wrong(?:ly)?|incorrect(?:ly)?|false(?:ly)?"
    r"|mistaken(?:ly)?|erroneous(?:ly)?"
    r"|by mistake|doubt\w*|den(?:y|ies)|impossible|unlikely"
    r"|suppos\w+|assum\w+|if|unless"
    r"|whether|imagine|pretend|might|may|maybe|perhaps|possibly|naive|claim\w*|someone|student\w*"
    r"|says|said|thought|misconceptions?|mistakes? (?:is )?that|I used to"
    r"|(?:some|many|most|few)(?: people| students)? (?:would|will|people|think|believe)"
    r"|hoped?|wonder\w*|falsche?n?|nicht|kein\w*|niemals|wenn|falls|angenommen|vielleicht"
    r"|möglicherweise|bezweifle|zweifle|behauptet|faux|fausse|erronée?|pas|jamais|doute|prétend\w*"
    r"|peut-être|supposons|falsa|equivocada|errónea|incorrecta|si|no|nunca|dudo|quizás?|tal vez"
    r"|supongamos|errad[ao]|sbagliata|не|вряд|возможно|сомневаюсь)\b|n['’]t\b|['’]s\s*$"
    r"|错误|不正确|假设|如果|假如|若|怀疑|可能|也许|或许|不是|并非|未必|学生|有人"
    r"|(?:小[明红华刚丽强芳]|[他她]们?|老师|同学|不[能要应该可会])$|間違|誤|もし|仮に|かもしれ"
    r"|おそらく|たぶん|ではな"
    r"|틀린|만약|잘못|아마|의심|неправильн|неверн|ошибочн|если|предполож",
    re.I,
)
_SUPPOSED = re.compile(
    r"\s*(?:(?:suppose|assume|imagine|pretend|say|if|unless|angenommen|nehmen wir an|vielleicht"
    r"|supposons|peut-être|supongamos|quizás?|предположим|допустим|возможно)\b(?!.*\bthen\b)"
    r"|(?:had|were|should) (?:we|I|you|it|this|that|one|he|she|they|the)\b"
    r"|(?:(?:my|our|the|an?) )?(?:(?:first|initial|early|rough|wild|original) )+"
    r"(?:guess|attempt|thought|try|impression|draft|reaction|idea)\b"
    r"|(?:假设|如果|假如|もし|仮に|만약|아마)(?!.*(?:那么|则)))",
    re.I,
)
# Text after an answer that takes it back.
_TAKEN_BACK = re.compile(
    r"(?:^\s*|[.!?…。！？,;]\s*|\n\s*|\)\s*|[-–—]\s*)(?:wait|no(?=[,.!;:…–—-]|\s*$|\s+(?:it|the"
    r"|that"
    r"|wait|not|actually|sorry|i|this|wrong|way)\b|\s+[$\\(*-]*\d)(?!\s+(?:other|more|further|need"
    r"|matter))|never mind|or(?=\s+(?:is|was) it\b|\s+[$\\(*]*-?\d|\s+\(?[A-J]\)?\s*[.?!]*\s*$)"
    r"|nope|oops|sorry|just kidding|kidding|scratch that|hold on|correction|on second thought|i "
    r"mean(?:t)?"
    r"|h+m+\b|edit(?=\s*[:：])"
    r"|actually(?=,|\s+(?:it|the|that|this|no|i|we|my|not|wrong|incorrect)\b|\s+[$\\(]*-?\d)"
    r"|or (?:maybe|perhaps|possibly|rather|else)|(?:maybe|perhaps|possibly)\b"
    r"|(?:but |and |no,? )?(?:that|this|it|which)(?:['’]s| is| was| seems)(?: probably| clearly| "
    r"obviously)? "
    r"(?:wrong|incorrect|false|not (?:right|correct|true|the answer)|a (?:joke|mistake|lie)"
    r"|impossible(?=\s*(?:[.!,;]|$)))"
    r"|(?:but |and |no,? )?(?:that|this|it|which) (?:can['’]t|cannot|could not|couldn['’]t) be "
    r"(?:right|correct|true|the answer)"
    r"|(?:but |and |however,? )?(?:it|this|that|which) (?:actually |really )?(?:turn(?:s|ed) out"
    r"|proved) to be\b"
    r"|(?:but |or )(?:it|that|this) (?:could|might|may)(?: also)? be"
    r"|(?:strike|disregard|ignore) (?:that|this|it|the above|my)\b|I take (?:that|it) back"
    r"|I was wrong|I made an? (?:mistake|error|slip)|my (?:mistake|bad|error)\b"
    r"|however,? the (?:correct|true|actual|right)\b"
    r"|nein|nicht|stimmt nicht|falsch|entschuldigung|moment(?= mal|[,.!])|warte|halt(?=[,.!])"
    r"|korrektur|doch nicht|besser gesagt|non\b|pardon|désolé|attends|attendez|plutôt|c['’]est faux"
    r"|no es|perdón|espera\b|mejor dicho|en realidad|corrijo|scusa|aspetta|desculpe"
    r"|нет(?=[,.!:\s])|неверно|неправильно|ошиб\w+|извините|простите|постойте|вернее|точнее"
    r"|不对|不是|错了|算错|等等|等一下|抱歉|更正|修正|哦不|其实(?:应该)?是|いや|違|間違"
    r"|すみません|訂正|待って"
    r"|아니|잠깐|죄송|정정|틀렸)"
    # Only right after the answer is "this" the answer.
    r"|^[\s$*)\]\\.,;]*(?:but |and |yet )?(?:that|this|it|which) (?:fails|contradicts"
    r"|(?:does not|doesn['’]t) (?:satisfy|work|hold|fit|make sense))\b",
    re.I,
)
# Right after a box: "\\boxed{5} is wrong".
_DENIED_AFTER = re.compile(
    r"[\s$*)\]\\.,;–—-]*(?:is|are|was|would be|seems|looks)?(?: clearly| probably| also)?\s*"
    r"(?:\bnot\b|n['’]t\b|(?:wrong|incorrect|false|impossible)(?:ly)?\b(?!\s+(?:position|positive"
    r"|negative)s?\b)|\?|吗|不对|不是|是错|falsch\b|faux\b"
    r"|or (?:maybe|perhaps|possibly|else)\b|maybe\b|perhaps\b|possibly\b"
    r"|(?<=[es]) (?:the|an?) (?:\w+ )?(?:(?:wrong|incorrect|false|naive)\s+(?:answer|value|result"
    r"|choice|option|one|solution|number|conclusion|root|claim|guess|sign)|trap|mistake|error)\b"
    r"|(?:or|/|\||vs\.?|versus|through)\s*[$\\(]*-?\d|\\?text\s*\{\s*(?:or|maybe|perhaps|to)\b"
    r"|(?<=s )too (?:small|large|big|low|high|few|many)\b"
    r"|would (?:be|have been) (?:the )?(?:correct|right|answer|true)?(?: answer)?"
    r" ?(?:only )?(?:if|for"
    r"|when)\b)",
    re.I,
)
# Right before a box: "it is not \\boxed{5}".
_DENIED_BEFORE = re.compile(
    r"(?:\b(?:not|never|neither|nor|isn['’]t|aren['’]t|cannot be|can['’]t be|wrong answer(?: is)?"
    r"|incorrect answer(?: is)?"
    r"|except|(?:differ(?:s|ent)?|apart|aside) from|other than|rather than|instead of|unlike"
    r"|(?:wrong|incorrect|false|not the answer|format)(?=\s*:)|\\neq?(?![a-z])|≠|!="
    r"|(?:rul(?:e|es|ed|ing)) out|reject(?:s|ed|ing)?|discard(?:s|ed|ing)?"
    r"|doubt(?: that)?(?: it is)?|maybe|perhaps|possibly|nicht|pas|kein)|不是|并非|不为|не)"
    r"[\s:$*(\\\[]*$",
    re.I,
)
# In an open clause on the line before a last line that is a value.
_REFUSED = re.compile(
    r"^\W*(?:eliminated?|rejected|discarded|excluded|crossed? out|struck out|strike|ruled out)\b"
    r"|(?:^\W*|\b(?:we|I|you|must|can|should|to)\s+)(?:reject|discard|exclude|rule out|eliminate)\b"
    r"|^\W*(?:assume|suppose|imagine|pretend)\b|\b(?:wrong(?:ly)?|incorrect(?:ly)?|false|not|never"
    r"|cannot|doubt|except|instead of|rather than|other than|unlike|maybe|perhaps|possibly|guess"
    r"|claim(?:s|ed)?|someone|naive|mistake|nicht|falsche?|verwerfen|vielleicht|pas|faux|fausse"
    r"|rejetons|peut-être|quizás?|incorrect[ao]|rechazamos|descartamos|не|неверн\w+|возможно"
    r"|отвергаем)\b|n['’]t\b|不是|不能|不为|不等于|不可能|并非|排除|错误|舍去|可能是|也许|假设"
    r"|間違|ではな|아니|틀린",
    re.I,
)
# Explanations after a value that may be cut off, unless `_DOUBT` matches in them.
_EXPLANATION = re.compile(
    r"[,;]?\s+(?:because|since|rather than|instead of|and not|porque|weil|denn)\b"
    r"|[,;]?\s+(?:and )?(?:nothing (?:else|more)|no (?:more|less|fewer|others?)(?![ -]than))\b"
    r"|;\s*(?:this|that|it|we|so|hence|thus|therefore)\b(?=[^\d]*$)"
    r"|\s+\((?:see|as|shown|proved|verified|checked|by|from)\b[^()\d]*\)$"
    r"|[,;，]\s*(?:because|since|as|so that|given that"
    r"|which|where|for"
    r"|and not|not|rather than|instead of|car|parce que|因为|porque|weil"
    r"|denn)(?![^\W\d_\u4e00-\u9fff])|因为|而不是",
    re.I,
)
_DOUBT = re.compile(
    r"\b(?:wrong|incorrect|false|maybe|perhaps|possibly|doubt\w*|guess\w*|unless|otherwise|kidding"
    r"|not (?:sure|right|true)"
    r"|could|might|fails|contradicts|(?:does not|doesn['’]t) (?:satisfy|work|hold|fit))\b"
    r"|错|不对|也许|可能",
    re.I,
)
# "17 ! = 355" continues after its factorial.
_SENTENCE_END = re.compile(
    r"(?:(?<!\bRs)(?<!\bapprox)[.?]|!(?!\s*[=<>+*/^≠]))(?=\s|$|[*_\"'”)]|</)|[。！？…．।]"
)
_ADVERB = re.compile(
    r"(?:thus|simply|exactly|precisely|indeed|then|therefore|hence|just|clearly|definitely"
    r"|certainly|equal to|given by"
    r"|found to be|obviously|now|for sure|surely|a total of|donc|also|somit|daher|luego|entonces"
    r"|pues|итак)\b[,:]?\s*"
    r"|(?:一共|总共|总计|共计|合计|共)(?:有|是|为|需要|要)?\s*|有(?=\s*\d)",
    re.I,
)
# "The answer, after simplification, is 17", "the answer (in cm) is 17"
_ASIDE = re.compile(
    r"\b((?:answer|result|solution))"
    r"(?:, (?=[^,\n]*[a-z]{2})[^,.;:!?\n$\\]{1,60},|\s\([^().;!?\n$\\]{1,40}\))"
    r"(?= (?:is|equals|must be|should be)\b)",
    re.I,
)
# After a retraction: "No, it is 18.", "更正：18"
_INSTEAD = re.compile(
    r"(?:(?:^\s*|[.!?,;:—–-]\s*|\n\s*|\b(?:so|and|but|no|wait)\s+)"
    r"(?:(?:it|that|this|the (?:correct |right |true |actual |real )?(?:answer|one|value|choice"
    r"|option|result))(?:['’]s| is| should be| must be| was)"
    r"(?: actually| really| rather| in fact| instead)?"
    r"|(?:correction|edit|corrected)\s*[:：]|es ist|c['’]est|il s['’]agit de|es|это)\s+"
    r"|(?:更正|修正|訂正|정정)\s*[:：]?\s*(?:为|為)?|[,，。]\s*(?:应该是|應該是|应为|而是|是))"
    r"(?P<value>[^\s,，][^\n]*)",
    re.I,
)
# "So 7 is the answer.": the other way round, in the last sentence.
_BACKWARDS = re.compile(
    r"(?:^|[.!?\n]\s+)(?:(?:so|hence|thus|therefore)\b,?\s+)?([^!?\n]{1,80}?)\s+is\s+(?:the|our"
    r"|my)\s+"
    r"(?:(?:final|correct|right)\s+)*answer[ .!*]*$",
    re.I,
)
ANNOTATION = re.compile(r"<<[^<>]*>>")  # its calculator: 8+9=<<8+9=17>>17
_GSM = re.compile(r"^####[ \t]*(\S.*)$", re.M)  # GSM8K's own marker
# Keys that hold the answer of a JSON object, the most telling first.
_ANSWER_KEYS = (
    *("final answer", "answer", "correct answer", "choice", "option", "correct option", "letter"),
    *("label", "prediction", "result", "solution", "value", "答案", "最终答案"),
)
# A backslash that JSON would take for an escape, or refuse: "\frac", "\theta", "\(".
_LATEX_IN_JSON = re.compile(r"(?<!\\)\\((?!u[0-9a-fA-F]{4})[a-zA-Z]{2,}|[()\[\]{},;!%$ ])")
_KEY = re.compile(r"[\"']\s*:")
MAX_OBJECTS = 20  # opening braces to look at, from the last one back; ours
_BRACE = re.compile(r"\\.|[{}]", re.S)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_MATH_SPAN = re.compile(r"\$\$.+?\$\$|(?<!\\)\$(?:\\.|[^$\\])+\$|\\\(.+?\\\)|\\\[.+?\\\]", re.S)
_ENVIRONMENT = (
    r"(\\begin\{(?P<env>(?:align|aligned|equation|gather|multline)\*?)\}.+?\\end\{(?P=env)\})"
)
_DISPLAY = re.compile(rf"\s*(?:\$\$(.+?)\$\$|\\\[(.+?)\\\]|{_ENVIRONMENT})", re.S)
_LAST_DISPLAY = re.compile(
    rf"(?:^|\n)[ \t]*(?:\$\$((?:(?!\$\$).)+)\$\$|\\\[((?:(?!\\\]).)+)\\\]"
    rf"|{_ENVIRONMENT})[ \t]*\.?$",
    re.S,
)
# A sentence around the value: "the largest n is 34", "there are 34 ways".
_SUBJECT_IS = re.compile(
    r"(?:that\s+)?(?P<subject>[^.;!?=]{2,120}?)\s(?:is|are|was|equals|is equal to|will "
    r"be)\s+(?:exactly |only )?"
    r"(?P<value>[*_]*[$\\(]*[-+]?(?:\\?\$)?[\d\\].{0,80})",
    re.S,
)
# "not 18 but 17"
_NOT_BUT = re.compile(
    r"not (?!only|just|merely)[^.;]{1,40}?,? but (?:rather |instead )?(\S.*)"
    r"|nicht (?!nur)[^.;]{1,40}?,? sondern (\S.*)|no (?:es )?(?!sólo"
    r"|solo)[^.;]{1,40}?,? sino (\S.*)"
    r"|(?:pas|non) [^.;]{1,40}?,? mais (\S.*)|не (?!только)[^.;]{1,40}?,? а (\S.*)"
    r"|不是[^.;。]{1,40}?[,，]?\s*而是(\S.*)",
    re.I | re.S,
)
_THERE_ARE = re.compile(
    r"(?:that\s+)?there\s+(?:is|are|were)\s+(?:exactly |only |precisely )?(?P<value>.*)",
    re.I | re.S,
)
_SUBJECT_IS_HAN = re.compile(
    r"[\u4e00-\u9fff][^。，,;；？！=\d]{0,30}?(?:应该是|应是|是|为|等于|共有"
    r"|有)\s*(?P<value>[$\\(（*-]*\d.*"
    r"|[$(（*-]*\\(?:d?frac|sqrt|pi).*)",
    re.S,
)
_HEDGED_HAN = re.compile(r"[不非或]|可能|也许|大于|小于|至少|至多|超过|以上|以下|如果|假设|没有")
_HEDGED_SUBJECT = re.compile(
    r"\b(?:not|no|if|than|least|most|maybe|perhaps|possibly|or|either|neither|nor|between|wrong"
    r"|incorrect|unless|when"
    r"|doubt)\b|n['’]t\b",
    re.I,
)
# Lines that are nothing but a value.
_VALUE_LINE = re.compile(
    r"[*_]{2}(?P<bold>[^*\n]{1,100})[*_]{2}\.?|(?P<math>\$[^$\n]+\$|\\\([^\n]+\\\)"
    r"|\\\[[^\n]+\\\])\.?"
    r"|(?P<letter>\([A-Z]\)|[A-Z])\.?"
    r"|(?P<number>[-+]?[$€£]?\d[\d,]*(?:[./]\d+)?\s?%?(?:\s[a-z]{1,12})?)\.?"
    r"|(?P<equation>[^\W\d][\w "
    r"]{0,40}\s*=\s*[-+]?[$€£]?\d[\d,]*(?:[./]\d+)?\s?%?(?:\s[a-z]{1,12})?)\.?"
    r"|A[*_]*[:：][*_]*\s*(?P<short>[-+$\\\d(].{0,100})"
    r"|(?:Ans|ANS|Answer|Solution|Total|Sum|Result|Output|Count"
    r"|Value)[*_]*[.:：][*_]*\s*(?P<labelled>\S.{0,100})"
)
# After a first line that is the answer.
_EXPLAINED = re.compile(
    r"\s*[*_#]*\s*(?:explanations?|reason(?:ing|s)?|rationale|justification|because|解析|解释"
    r"|分析|理由"
    r"|説明|解説|해설|설명|erklärung|begründung|explication|justification|explicación|объяснение"
    r"|решение)\b",
    re.I,
)
_BOLD_AT_END = re.compile(
    r"(?P<subject>.*)\s(?:is|are|equals|=)\s*(?P<value>\*\*[^*]+\*\*)[.!]?", re.S
)
_GRID_ROW = re.compile(r"\s*(?:\S{1,3}[ ,|]+)+\S{1,3}\s*")


def find_answer(text: str, delimiters: tuple[str, str] = THINK) -> Extracted:
    """Return the final answer of a completion, without the markdown and the sentence around it."""
    extracted = raw_answer(text, delimiters)
    if extracted.answer is None:
        return extracted
    answer = tidy(extracted.answer)
    return (
        extracted._replace(answer=answer)
        if answer
        else Extracted(None, extracted.where, "no answer")
    )


def raw_answer(text: str, delimiters: tuple[str, str] = THINK) -> Extracted:
    """Return the final answer with the marks around it."""
    visible = visible_text(text, delimiters)
    if visible is None:
        return Extracted(None, detail="no answer: the reasoning never ended")
    blocks = answer_blocks(visible) if "</answer>" in visible else []
    if blocks:
        # The same answer twice is one answer, however it is spaced.
        answers = {" ".join(tidy(one).split()): one for one in map(inner, dict.fromkeys(blocks))}
        if len(answers) > 1:
            return Extracted(None, "tag", "two different <answer> blocks")
        answer = next(iter(answers.values()))
        if not answer.strip():
            return Extracted(None, "tag", "no answer: the <answer> block is empty")
        return Extracted(answer, "tag")
    extracted = from_json(visible) or in_prose(visible)
    if extracted is not None:
        return extracted
    line = _ONLY_A_FENCE.sub(r"\1", visible.strip())
    if "<answer>" in line or "boxed" in line or not line:
        return Extracted(None, detail="no answer")
    if len(line) <= BARE and "\n" not in line:
        return bare_line(line)
    if _is_grid(line):
        return Extracted(line, "bare")
    value = first_line(line) or last_line(line) or last_display(line)
    return Extracted(value, "last line") if value else Extracted(None, detail="no answer")


# A completion that is nothing but a block of text.
_ONLY_A_FENCE = re.compile(r"\A```(?:text|plaintext|txt|math|latex)?[ \t]*\n([^`]+?)\s*```\Z")


def visible_text(text: str, delimiters: tuple[str, str] = THINK) -> str | None:
    """Return what a reader sees as the answer part: after the reasoning, without end-of-turn
    tokens and struck-out text; None if the reasoning never ended.
    """
    visible = after_reasoning(without_end_tokens(text), delimiters)
    if visible is None or ("~~" not in visible and "<" not in visible):
        return visible
    return visible[: -TAIL or None] + _STRUCK.sub("", visible[-TAIL:])


def without_end_tokens(text: str) -> str:
    """Remove the end-of-turn tokens of chat templates."""
    return _END_TOKENS.sub("", text) if "<" in text or "[/INST]" in text else text


def inner(block: str) -> str:
    """Return the answer inside an <answer> block: its box, its announced answer, or all of it."""
    extracted = from_json(block) or in_prose(block)
    return (extracted.answer or "") if extracted is not None else block.strip()


def after_reasoning(text: str, delimiters: tuple[str, str]) -> str | None:
    """Return the text after the end of the reasoning; None if the reasoning was opened and never
    closed.
    """
    opening, closing = delimiters
    at = text.rfind(closing)
    rest = text[at + len(closing) :] if at >= 0 else text
    return None if opening in rest else rest


def answer_blocks(text: str) -> list[str]:
    """Return the contents of the closed `<answer>` blocks, from the innermost opening tag."""
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


def from_json(text: str) -> Extracted | None:
    """Return the answer of a JSON object at the end of a text; Python's quotes are accepted."""
    tail = text[-20 * BARE :].rstrip().removesuffix("```").rstrip()
    if not tail.endswith("}") or not _KEY.search(tail):
        return None
    at = len(tail)
    for _ in range(MAX_OBJECTS):
        at = tail.rfind("{", 0, at)
        if at < 0:
            return None
        values = _read_object(tail[at:])
        if values is not None:
            return _answer_of(values)
    return None


def _read_object(text: str) -> dict[Any, Any] | None:
    """Read an object in JSON or with Python's quotes; LaTeX commands in it keep their backslash."""
    text = _LATEX_IN_JSON.sub(r"\\\\\1", text) if "\\" in text else text
    for read in (json.loads, ast.literal_eval):
        try:
            values = read(text)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
        return values if isinstance(values, dict) else None
    return None


def _answer_of(values: dict[Any, Any]) -> Extracted | None:
    """Return the value of the one key that names an answer."""
    named = {
        name: value
        for key, value in values.items()
        if (name := str(key).lower().replace("_", " ").strip()) in _ANSWER_KEYS
    }
    for name in _ANSWER_KEYS:  # "answer" counts before "result"
        if name in named:
            break
    else:
        return None
    value = named[name]
    if isinstance(value, list):
        return Extracted(", ".join(map(str, value)), "json")
    if isinstance(value, str):
        return Extracted(inner(value), "json")
    if value is None or isinstance(value, dict):
        return Extracted(None, "json", "no answer")
    return Extracted(str(value).lower() if isinstance(value, bool) else str(value), "json")


def _is_grid(text: str) -> bool:
    """Whether a text is nothing but rows of as many short cells each."""
    lines = text.split("\n")
    if "=" in text or ":" in text or not all(map(_GRID_ROW.fullmatch, lines)):
        return False
    return len({len(re.split(r"[ ,|]+", line.strip(" ,|"))) for line in lines}) == 1


def first_line(text: str) -> str | None:
    """Return the first line if it is nothing but a value, and an explanation of it follows."""
    line, _, rest = text.partition("\n")
    match = _VALUE_LINE.fullmatch(line.strip()) if len(line) <= BARE else None
    explained = _EXPLAINED.match(rest)
    if match is None or explained is None:
        return None
    if is_taken_back(rest[explained.end() :].lstrip(" *_:：\n")):
        return None
    return next(value for value in match.groups() if value is not None)


def last_line(text: str) -> str | None:
    """Return the last line of a longer text if it is nothing but a value, and the line before it
    does not make it something else.
    """
    before, _, line = text.rstrip().rpartition("\n")
    line = line.strip()
    if len(line) > BARE or is_refused(before):
        return None
    match = _VALUE_LINE.fullmatch(line)
    if match is None:
        return value_at_end(line)
    if match["equation"] and _DENIED.search(line):
        return None
    return next(value for value in match.groups() if value is not None)


def last_display(text: str) -> str | None:
    """Return the displayed formula that a text ends with, if the line before it allows it."""
    tail = text[-5 * BARE :].rstrip()
    match = _LAST_DISPLAY.search(tail)
    if match is None or is_refused(tail[: match.start()]):
        return None
    return next(filter(None, match.groups()))


_PROSE_WORD = re.compile(r"[^\W\d_]{2,}|[\u3040-\u30ff\u4e00-\u9fff]")


def is_refused(before: str) -> bool:
    """Whether the line before the last one denies, supposes or only quotes what follows it ("We
    reject", "Not:"), or offers another value.
    """
    previous = next((one for one in reversed(before[-TAIL:].splitlines()) if one.strip()), "")
    previous = previous.strip()[-BARE:]
    written = re.sub(r"\\[a-zA-Z]+", "", previous)
    if "=" not in previous and re.search(r"\w", written) and not _PROSE_WORD.search(written):
        return True  # one of several lines with a value each
    if previous.endswith((".", "。", "!", "！")):
        return False
    sentence = re.split(r"(?<=[.!?。！？])\s+", previous)[-1]
    clause = re.split(r"[,;，；]", sentence.rstrip(" :：*_"))[-1]
    is_quoted = sentence.count('"') % 2 == 1 or sentence.rfind("“") > sentence.rfind("”")
    return is_quoted or bool(_REFUSED.search(clause) or _DENIED_BEFORE.search(clause))


def bare_line(line: str) -> Extracted:
    """Return the answer in a completion of one line, which may take its answer back: "17. Wait, no.
    It is 18."
    """
    value = labelled(line) or value_at_end(line)
    if value is None and (corrected := corrected_line(line)):
        return corrected
    return Extracted(value or line, "bare")


def corrected_line(line: str) -> Extracted | None:
    """Return what a line states after it took a first value back; None if it takes nothing back."""
    _, following = value_of(line)
    if not following.strip() or not is_taken_back(following):
        return None
    instead = stated_instead(following)
    if instead is None:
        return Extracted(None, "bare", "the text takes its answer back")
    return Extracted(instead, "bare")


def labelled(line: str) -> str | None:
    """Return the value of "A: 26" or "Total: 26"."""
    match = _VALUE_LINE.fullmatch(line)
    return match["short"] or match["labelled"] if match else None


def value_at_end(line: str) -> str | None:
    """Return the bold value at the end of a sentence: "Thus, the count is **73**."."""
    match = _BOLD_AT_END.fullmatch(line)
    if (
        match is None
        or _HEDGED_SUBJECT.search(match["subject"])
        or _DENIED.search(match["subject"])
    ):
        return None
    return match["value"]


# -- boxes


# Any word of `_DENIED_BEFORE`: a fast test before that pattern is tried.
_NEGATION = re.compile(
    r"(?i:not|never|n['’]t|neither| nor|wrong|incorrect|except|(?:ffers?|fferent|apart|aside) from"
    r"|(?:other|rather) than|instead of|unlike"
    r"|ul(?:e|es|ed|ing) out|reject|discard|doubt|maybe|perhaps|possibly|nicht|pas|kein|suppose"
    r"|assume|if |student"
    r"|\\ne|!=|format|mistake|error|naive|imagine|pretend|claim|tempting|peut|quiz|vielleicht|angenommen|falsch"
    r"|mauvais|false|equivocad|supon|suppos)"
    r"|[不并非假如若学设仮違错≠]|не|предпол|возможно|만약|틀린"
)
_NEGATIONS = (
    *("not", "never", "n't", "neither", " nor", "wrong", "incorrect", "except", "doubt"),
    *("ffer from", "ffers from", "fferent from", "apart from", "aside from", "other than"),
    *("rather than", "instead of", "unlike", "reject", "discard"),
    *("ule out", "ules out", "uled out", "uling out", "false", "equivocad"),
    *("maybe", "perhaps", "possibly", "nicht", "pas", "kein", "suppose", "assume", "if "),
    *("student", "mistake", "error", "naive", "imagine", "pretend", "claim", "tempting"),
    *("peut", "quiz", "vielleicht", "angenommen", "supon", "suppos", "falsch", "mauvais", "says"),
    *(
        "format",
        "\\ne",
        "!=",
        "unlikely",
        "impossible",
        "common",
        "typical",
        "usual",
        "frequent",
        "easy",
    ),
)


def _may_deny(before: str) -> bool:
    if not before.isascii():
        return bool(_NEGATION.search(before))
    lowered = before.lower()
    return any(word in lowered for word in _NEGATIONS)


def in_prose(text: str) -> Extracted | None:
    """Return the last box, or an announced answer; a plain value announced after the last box
    corrects it.
    """
    box = last_boxes(text)
    if box is None:
        return announced(text)
    following = text[box.end : box.end + TAIL]
    if (
        box.answer
        and not following.strip(" $.*\n")
        and not text[max(0, box.start - 4) : box.start].endswith(("-", "sqrt"))
        and not _may_deny(text[max(0, box.start - 60) : box.start])
    ):
        return Extracted(box.answer, "boxed")  # the box ends the text, as most do
    later = announced(text[box.end :])
    if later is not None and later.answer and _is_plain_value(later.answer):
        return later
    if not box.answer:
        return Extracted(None, "boxed", "no answer: the box is empty")
    line = text[max(0, box.start - BARE) : box.start].rpartition("\n")[2]
    contrast = _CONTRAST.match(following)  # "\boxed{17}, not 18"
    after = following[contrast.end() :] if contrast else following
    if _is_denied_box(line) or _DENIED_AFTER.match(after) or is_taken_back(after):
        return Extracted(None, "boxed", "the text takes the boxed answer back")
    script = _SCRIPT_AFTER.match(following)  # \boxed{5}^2 is not 5
    before = _FUNCTION_BEFORE.search(line)  # \sqrt{\boxed{5}} is not 5
    sign = before.group() if before else "-" if _MINUS_BEFORE.search(line) else ""
    brace = "}" if sign.endswith("{") else ""
    return Extracted(sign + box.answer + brace + (script.group() if script else ""), "boxed")


_CONTRAST = re.compile(
    r"[\s$*)\]\\]*[,;(]\s*(?:and\s+)?(?:not|rather than|instead of)\s+[$\\({]*-?\w"
)
_SCRIPT_AFTER = re.compile(
    r"\s*[_^]\s*(?:\{[^{}]*\}|\w)|\.?\d+|[xyz]\b"
    r"|\s*(?:\+|\\cdot|\\times|\\pi)\s*(?:[\d\\a-zA-Z]+)?|,\s?\d+(?=\s*(?:\.|\$|\Z))"
)
_FUNCTION_BEFORE = re.compile(r"\\(?:sqrt|ln|log|exp|sin|cos|tan)(?:\s*\{)?$")
_MINUS_BEFORE = re.compile(r"(?:[=$(\[]\s*-\s*|^-)$")  # x = -\boxed{5}
# In the sentence before a box: its content is not the answer.
_NOT_MEANT = re.compile(
    r"\b(?:common|typical|usual|frequent|easy) (?:mistake|error|misconception)"
    r"|\b(?:mistake|error) (?:is|would be) to|\bif (?:it|this|that|the answer) (?:were|was)\b"
    r"|\b(?:wrong|naive|incorrect|false|tempting|student['’]s|falsche|mauvaise|неправильный|неверный)"
    r" (?:answer|guess|result|value|antwort|réponse|ответ)\b|respuesta (?:incorrecta|equivocada)"
    r"|\b(?:suppose|assume|imagine|pretend|doubt|unlikely|impossible|claims?|says|not true"
    r"|angenommen|supposons|supongamos|предположим|допустим),? (?:that |dass |que |что )?"
    r"(?:the |die |la |le )?(?:final |correct )?(?:answer|result|value|antwort|réponse|respuesta"
    r"|ответ)\b[^.]{0,20}$"
    r"|(?:假设|如果|假如|怀疑|もし|仮に|만약)[^，。]{0,10}(?:答案|答え|정답)[^，。]{0,10}$"
    r"|(?:错误|不正确)的?答案|間違った答え|틀린 답",
    re.I,
)


def _is_denied_box(line: str) -> bool:
    """Whether the words before a box deny, suppose or attribute what it holds."""
    if not _may_deny(line):
        return False
    sentence = re.split(r"(?<=[.!?。！？])\s+", line)[-1]
    return bool(_DENIED_BEFORE.search(line) or _NOT_MEANT.search(sentence.rstrip(" $\\([*")))


def _is_plain_value(answer: str) -> bool:
    """Whether an announcement is a value rather than a remark ("0 mod 5", "100% certain")."""
    bare = re.sub(r"\\[a-zA-Z]+", "", answer)
    return bool(re.match(r"[-+$\\(\[{0-9.*]", answer) and re.search(r"\w", bare)) and not re.search(
        r"[^\W\d_]{3,}", bare
    )


class _Box(NamedTuple):
    """The content of one or more joined boxes, and the range of the text that they cover."""

    answer: str
    start: int
    end: int


_CORRECTION = re.compile(
    r"\b(?:no|wait|wrong|incorrect|correct\w*|actually|rather|instead|should|mistake|but|however"
    r"|final(?:ly)?|let me|not)\b"
    r"|不对|错|更正|最终|最后",
    re.I,
)
_SENTENCE_BETWEEN = re.compile(
    r"[^\W\d_]{2,}\W+[^\W\d_]{2,}.*[.!?。！？\n]"
    r"|[.!?。！？\n]\W*[^\W\d_]{2,}\W+[^\W\d_]{2,}\W+[^\W\d_]{2,}",
    re.S,
)
_NAME_BEFORE = re.compile(r"(?:^|[\s$(\\])([A-Za-z](?:_\{?\w+\}?)?)\s*=\s*$")
_LIST_JOINER = re.compile(
    r"(?:[\s$;,，、。；*]|\\[()\[\],;]|\\(?:quad|qquad)|\\text\s*\{|\}|\b(?:and|und|et|y)\b|和"
    r"|及|与|と|и)*"
)
_OR_JOINER = re.compile(
    r"(?:[\s$;,，、*]|\\[()\[\],;]|\\(?:quad|qquad)|\\text\s*\{|\}|\b(?:or|oder|ou)\b|或者|或"
    r"|или)*",
    re.I,
)
_NAMED_LIST = re.compile(
    r"(?:[\s$]|\\[)\]])*(?:\\text\s*\{)?\s*(?:[^\W\d_]+\s+){0,4}(?:\(\w\)\s*)?[,;]?\s*(?:and|,"
    r"|;)\s*\}?[\s$]*"
    r"(?:\\[(\[]\s*)?(?:[A-Za-z](?:_\{?\w+\}?)?\s*=\s*)?[\s$]*(?:\\[(\[])?\s*"
)
_HEDGE = re.compile(r"\b(?:maybe|perhaps|possibly|else|either|vs|versus|or|not)\b", re.I)


def last_boxes(text: str) -> _Box | None:
    """Return the last balanced box, joined with those before it unless a sentence comes between
    them.

    Without a sentence between two boxes there is no correction: both are offered.
    """
    spans: list[tuple[int, int, int]] = []  # start of the command, start and end of its content
    at, tail = len(text), max(0, len(text) - TAIL)
    has_fbox = "\\fbox" in text
    for _ in range(MAX_BOXES):
        boxed = text.rfind("\\boxed", tail, at)
        at = max(boxed, text.rfind("\\fbox", tail, at)) if has_fbox else boxed
        match = _BOX.match(text, at) if at >= 0 else None
        if at < 0:
            break
        end = closing_brace(text, match.end()) if match else -1
        if match is None or end < 0:
            continue
        if spans and end > spans[-1][2]:  # it encloses the others: its whole content counts
            spans = [(at, match.end(), end)]
            continue
        if spans:
            between = text[end + 1 : spans[0][0]]
            if end >= spans[0][0] or not _belong_together(between):
                break
        spans.insert(0, (at, match.end(), end))
    if not spans:
        return _unbraced_box(text, tail)
    if len(spans) == 1:
        (at, start, end), *_ = spans
        return _Box(_unnested(text[start:end].strip()), at, end + 1)
    return _Box(_joined(text, spans), spans[0][0], spans[-1][2] + 1)


# "\\text{The answer is }" in front of a boxed value
_LABEL_IN_BOX = re.compile(
    r"\s*\\(?:text|textbf|mathrm|mbox)\s*\{\s*(?:the )?(?:final |correct )?answer"
    r"(?: is|\s*[:=])\s*[:=]?\s*\}"
    r"\s*[:=]?(?:\s|~|\\[,;: ])*(?=\S)",
    re.I,
)


def _unnested(content: str) -> str:
    """Return a box's content without its label, and without a box that holds all of it, or all
    after an equals sign.
    """
    if "nswer" in content:
        content = _LABEL_IN_BOX.sub("", content, count=1)
    match = _BOX.search(content)
    if match is None or closing_brace(content, match.end()) != len(content) - 1:
        return content
    before = content[: match.start()].rstrip()
    if before and not before.endswith("="):
        return content  # \boxed{35 \boxed{33}} offers two answers
    return before + " " * bool(before) + _unnested(content[match.end() : -1].strip())


# \\boxed 5, as some solutions write it
_UNBRACED = re.compile(r"\\boxed\s*(-?\d[\d.,/]*|[A-J](?![A-Za-z]))(?![\w{\\^])")


def _unbraced_box(text: str, tail: int) -> _Box | None:
    at = text.rfind("\\boxed", tail)
    match = _UNBRACED.match(text, at) if at >= 0 else None
    return _Box(match[1].rstrip(".,"), at, match.end()) if match else None


def _belong_together(between: str) -> bool:
    if len(between) > 80 or _CORRECTION.search(between):
        return False
    return not _SENTENCE_BETWEEN.search(between)


def _joined(text: str, spans: list[tuple[int, int, int]]) -> str:
    """Return the contents of boxes as one answer, unreadable on purpose if anything but a list is
    between them.
    """
    contents = [_unnested(text[start:end].strip()) for _, start, end in spans]
    if len(set(contents)) == 1:
        return contents[0]
    if not any(contents):
        return ""
    names = [_NAME_BEFORE.search(text[max(0, at - 20) : at]) for at, _, _ in spans]
    if all(names):
        contents = [
            f"{name.group(1)} = {one}" for name, one in zip(names, contents, strict=True) if name
        ]
    joined = contents[0]
    for i, content in enumerate(contents[1:]):
        between = text[spans[i][2] + 1 : spans[i + 1][0]]
        if _LIST_JOINER.fullmatch(between) or (
            _NAMED_LIST.fullmatch(between) and not _HEDGE.search(between)
        ):
            joined += f", {content}"
        elif _OR_JOINER.fullmatch(between):
            joined += f" or {content}"
        else:
            joined += f" ?{between.strip()}? {content}"
    return joined.strip(" ,")


def closing_brace(text: str, start: int) -> int:
    """Return the index of the brace that closes the one before `start`, or -1. Escaped braces do
    not count.
    """
    depth = 1
    first = text.find("}", start, start + TAIL)
    if first < 0 or ("{" not in (inside := text[start:first]) and "\\" not in inside):
        return first
    for match in _BRACE.finditer(text, start, start + TAIL):
        sign = match.group()
        # A stray backslash before the last brace, "\\boxed{185\\}", is a slip; no set closes there.
        if sign == "\\}" and depth == 1 and "\\{" not in text[start : match.start()]:
            return match.start()
        depth += (sign == "{") - (sign == "}")
        if not depth:
            return match.start()
    return -1


# -- announcements


def announced(text: str) -> Extracted | None:
    """Return the last announced answer of a text, or None."""
    tail = _without_contrasts(_without_asides(text[-TAIL:]))
    for match in reversed(list(_GSM.finditer(tail))):
        if not ANNOUNCE.match(match.group(1)):
            return Extracted(ANNOTATION.sub("", match.group(1)), "announced")
    for match in reversed(list(ANNOUNCE.finditer(tail))):
        statement = _statement(tail, match)
        if statement is None:
            continue
        value, following = statement
        if following.lstrip().startswith(("?", "？")):
            continue
        if is_taken_back(following):
            instead = stated_instead(following)
            if instead is None:
                return Extracted(None, "announced", "the text takes its answer back")
            value = instead
        if value.strip():
            return Extracted(value, "announced")
    backwards = _BACKWARDS.search(tail[-BARE:].rstrip())
    if backwards is None:
        return None
    return Extracted(backwards.group(1).rpartition(". ")[2], "announced")


def _without_asides(text: str) -> str:
    """Return a text without what is put between "answer" and its verb: "the answer, after
    simplification, is 17". An aside that denies or doubts stays.
    """
    if "nswer" not in text and "esult" not in text and "olution" not in text:
        return text
    return _ASIDE.sub(
        lambda aside: (
            aside.group() if _DENIED.search(aside[0]) or _DOUBT.search(aside[0]) else aside[1]
        ),
        text,
    )


# "La respuesta no es 18 sino 17", "The answer isn't 18 but 17", 答案不是18，而是17
_NOT_THIS_BUT = re.compile(
    r"\b(?P<en>answer)(?: is not| isn['’]t) [^.,;?!\n]{1,40},? but (?:rather )?(?!also)"
    r"|\b(?P<es>respuesta) no es (?!sólo|solo)[^.,;?!\n]{1,40},? sino "
    r"|\b(?P<fr>réponse) n['’]est pas (?!seulement)[^.,;?!\n]{1,40},? mais "
    r"|(?P<ru>ответ) не (?!только)[^.,;?!\n]{1,40}, а "
    r"|(?P<zh>答案)不(?:是|为)[^。？！\n]{1,40}[,，]\s*而是",
    re.I,
)
_IS = {"en": " is ", "es": " es ", "fr": " est ", "ru": ": ", "zh": "是"}


def _without_contrasts(text: str) -> str:
    """Write "the answer isn't 18 but 17" as "the answer is 17"."""
    if not _BUT.search(text):
        return text

    def positive(match: re.Match[str]) -> str:
        language = match.lastgroup or "en"
        return f"{match[language]}{_IS[language]}"

    return _NOT_THIS_BUT.sub(positive, text)


_BUT = re.compile(r" but | sino | mais |, а |而是")


def stated_instead(following: str) -> str | None:
    """Return the value that a text states after it took another one back ("No, it is 18."), or
    None.
    """
    statements = list(_INSTEAD.finditer(following[:2000]))
    if not statements:
        return None
    value, rest = value_of(statements[-1]["value"], following[statements[-1].end() :][:2000])
    if rest.lstrip().startswith(("?", "？")) or is_taken_back(rest):
        return None
    return value.strip() or None


def _statement(text: str, match: re.Match[str]) -> tuple[str, str] | None:
    """Return the value that an announcement states and the text after it; None if it announces
    nothing.
    """
    start = match.start()
    phrase, mark = match["phrase"], match["mark"]
    if start and text[start - 1].isalpha() and text[start].isascii():
        return None  # the middle of a word
    rest = text[match.end() :]
    line, _, following = rest.partition("\n")
    heading = not line.strip(" \t*_#:：")
    display = _DISPLAY.match(rest)
    marked = (
        _VERB.search(phrase)
        or _IS_AT_END.search(line)
        or _INVERTED.match(phrase)
        or re.search(r"[】:：=है—–>→➡⇒-]", mark)
    )
    same_line = display is not None and "\n" not in display.group()
    if not (marked or heading or same_line) or is_denied(text[:start], phrase):
        return None
    if display:  # mathematics on its own lines
        return next(filter(None, display.groups())), rest[display.end() :]
    if heading:
        return _under_heading(following)
    return value_of(line, following)


def _under_heading(text: str) -> tuple[str, str]:
    """Return the answer in the lines after a heading: the first line, or all rows of a grid."""
    lines = text.split("\n")
    first = next((i for i, part in enumerate(lines) if part.strip(" *_#-")), None)
    if first is None:
        return "", ""
    if lines[first].lstrip().startswith("```"):  # a block of text
        fence = (i for i in range(first + 1, len(lines)) if lines[i].strip() == "```")
        end = next(fence, len(lines))
        return "\n".join(lines[first + 1 : end]), "\n".join(lines[end + 1 :])
    last = first
    while last < len(lines) and _GRID_ROW.fullmatch(lines[last]):
        last += 1
    if last - first > 1:
        return "\n".join(lines[first:last]), "\n".join(lines[last:])
    return value_of(lines[first], "\n".join(lines[first + 1 :]))


# A sentence whose verb comes last: उत्तर 14 है
_IS_AT_END = re.compile(r"(?<=\s)है\s*[।.]?\s*$")
# Endings of a Japanese, Korean or Hindi sentence: (1,2)です
_POLITE = re.compile(r"\s*(?:है|です|である|だ|となります|になります|입니다|이다|이에요|예요)$")


def value_of(line: str, following: str = "") -> tuple[str, str]:
    """Return the value at the start of a line, and the text after its sentence."""
    line = line.strip()
    while adverb := _ADVERB.match(line):
        line = line[adverb.end() :]
    # Full stops and commas inside formulas do not end a sentence.
    masked = _MATH_SPAN.sub(lambda span: "x" * len(span.group()), line)
    end = _SENTENCE_END.search(masked)
    sentence, rest = (line[: end.start()], line[end.start() :]) if end else (line, "")
    is_closed = sentence.endswith(("$", "\\)"))
    if rest.startswith("!") and not rest[1:].strip(" *_") and not is_closed:
        sentence, rest = sentence + rest, ""  # 5! may be a factorial
    cut = _EXPLANATION.search(masked[: len(sentence)])
    if cut and cut.start():
        explanation = sentence[cut.start() :]
        because = re.match(r"[,;]?\s*(?:because|since|因为|weil|denn|porque)", explanation, re.I)
        if because or not _DOUBT.search(explanation):
            sentence = sentence[: cut.start()]
    if not sentence.isascii():
        sentence = _POLITE.sub("", sentence)
    after = rest[1:] if rest[:1] in (".", "。", "!", "！") else rest
    return value_in_sentence(sentence), f"{after}\n{following}"


_IN_ALL = re.compile(r"(?<=\w)\s+(?:in total|in all|altogether|overall)$", re.I)


def value_in_sentence(sentence: str) -> str:
    """Return the value of "the largest n is 34" or "there are 34 ways", else the text itself."""
    bare = sentence.strip(" *_")
    if in_all := _IN_ALL.search(bare):
        return bare[: in_all.start()]
    if contrast := _NOT_BUT.match(bare):
        return next(value for value in contrast.groups() if value is not None)
    if there := _THERE_ARE.fullmatch(bare):
        return there["value"]
    in_han = _SUBJECT_IS_HAN.fullmatch(bare)
    if in_han and not _HEDGED_HAN.search(bare):
        return in_han["value"]
    match = _SUBJECT_IS.fullmatch(bare)
    # If the subject is itself a value, two answers are offered: "$5$ is 6".
    if match is None or _HEDGED_SUBJECT.search(bare) or re.match(r"[-+$\\(\[{\d.*]", bare):
        return sentence
    return match["value"]


_DETERMINED = re.compile(r"(?:the|my|our|die|das|la|le|el)\s", re.I)


def is_denied(before: str, phrase: str) -> bool:
    """Whether the words before an announcement deny it, doubt it, suppose it, or say it is somebody
    else's.
    """
    line = before[-BARE:].rpartition("\n")[2]
    sentence = re.split(r"(?<=[.!?。！？])\s*", line)[-1]
    clause = _CLAUSE_START.split(sentence)[-1]
    if _DENIED.search(clause) or _SUPPOSED.match(sentence):
        return True
    if _DETERMINED.match(phrase) and _HOW.match(clause):
        return False
    word = re.search(r"([^\W\d_]+(?:['’]\w+)?)\s*$", clause)
    if word is None or not phrase[:1].isascii() or not word.group(1).isascii():
        return False
    return word.group(1).casefold() not in _ALLOWED_BEFORE


def is_taken_back(following: str) -> bool:
    return bool(_TAKEN_BACK.search(following[:2000]))


_IN_A_WORD = re.compile(r"[\w)](?:\*\*|__)[\w(]")
# Marks of approval around an answer.
_CHEER = " ✅✓✔☑\ufe0f😊🙂😀😃😄😁🎉👍🚀⭐🌟🎯💡🏆"


def tidy(answer: str) -> str:
    """Strip the markdown, quotes and full stop around an answer."""
    answer = answer.strip()
    for _ in range(4):
        before = answer
        answer = answer.strip(" \t\r\n")
        if not answer.isascii():
            answer = answer.strip(_CHEER)
        for mark in ("**", "__", "`", "*"):
            if len(answer) > 2 * len(mark) and answer.startswith(mark) and answer.endswith(mark):
                answer = answer[len(mark) : -len(mark)]
        for mark in ("**", "__"):  # half of a pair: "**Answer: 5** apples", but not x**2
            if answer.count(mark) == 1 and not _IN_A_WORD.search(answer):
                answer = answer.replace(mark, "")
        if (
            len(answer) > 1
            and answer[-1] in ".。．"
            and not answer.endswith(("..", "。。", "\\right."))
        ):
            answer = answer[:-1]
        if answer == before:
            return answer
    return answer
