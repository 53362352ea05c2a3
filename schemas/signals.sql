-- version: 1
-- Measured columns of a trace. A signal never decides. Columns are stored per group of signals and
-- group version. [group] is the group of `curate.signals.GROUPS` that measures the column. The text
-- is the completion; the CoT is its reasoning (the whole text if it has none); prose is the CoT
-- without code, LaTeX, numbers, URLs and tags. Shares are between 0 and 1, and 0 if the denominator
-- is 0, unless stated otherwise.
CREATE TABLE signals (
    trace_id                          VARCHAR NOT NULL, -- traces.trace_id
    attempt                           INTEGER NOT NULL, -- traces.attempt
    has_think                         BOOLEAN, -- [shape] the text has reasoning that is not blank,
                                               -- delimited as its form says
    well_formed                       BOOLEAN, -- [shape] every tag of the form once, in order,
                                               -- closed, and an answer (curate/prompts/forms.py);
                                               -- without tags: not blank, not unfinished, not a
                                               -- refusal
    unfinished                        BOOLEAN, -- [shape] the text ends inside a sentence: in a
                                               -- comma, an open bracket, an article or a
                                               -- conjunction
    refusal                           BOOLEAN, -- [shape] a short text that opens by declining to
                                               -- answer, in one of ten languages
    has_summary                       BOOLEAN, -- [shape] the reasoning is followed by an answer
                                               -- (r1-zero) or a summary (r1)
    truncated                         BOOLEAN, -- [shape] cut off by the token limit
                                               -- (traces.finish_reason); null if unknown
    characters                        INTEGER, -- [shape] characters of the text
    words                             DOUBLE,  -- [shape] words of the CoT: alphabetic words, 0.65
                                               -- per Han character, 0.55 per kana
                                               -- (curate/signals/prose.py)
    lines                             INTEGER, -- [shape] lines of the text
    longest_line                      INTEGER, -- [shape] characters of the longest line
    longest_paragraph                 INTEGER, -- [shape] characters of the longest paragraph; blank
                                               -- lines separate paragraphs
    function_word_lines               INTEGER, -- [shape] lines outside code that are a single
                                               -- function word ("the", "of", "的") or a mark: one
                                               -- word per line
    indentations                      INTEGER, -- [shape] distinct numbers of leading spaces of the
                                               -- lines outside code
    code_blocks                       INTEGER, -- [shape] fenced code blocks
    code_share                        DOUBLE,  -- [shape] share of characters inside fenced code
                                               -- blocks
    unbalanced_latex                  INTEGER, -- [shape] LaTeX environments, delimiters and dollars
                                               -- outside code without their other half
    unbalanced_brackets               INTEGER, -- [shape] brackets outside code without their other
                                               -- half, summed over {}, (), []; not list markers
                                               -- "1)" and half-open intervals
    broken_share                      DOUBLE,  -- [shape] share of characters that are replacement,
                                               -- control, private-use or unassigned (Unicode
                                               -- classes), or UTF-8 read as another encoding
    strange_share                     DOUBLE,  -- [shape] share of visible characters outside the
                                               -- scripts, punctuation and mathematics of the
                                               -- supported languages; of unsupported scripts, only
                                               -- the most frequent is excused
    unsupported_share                 DOUBLE,  -- [shape] share of visible characters that are
                                               -- letters of one living script that is not supported
                                               -- (Bengali, Thai, Hebrew, Georgian ...)
    odd_word_share                    DOUBLE,  -- [shape] share of prose words (of all scripts) that
                                               -- no writer writes: a capital or symbols inside, two
                                               -- scripts, over 25 letters (token soup)
    vowelless_share                   DOUBLE,  -- [shape] share of prose words (of all scripts) that
                                               -- are four or more Latin consonants (random keys);
                                               -- not acronyms
    abbreviated_share                 DOUBLE,  -- [shape] share of prose words (of all scripts) that
                                               -- are two or three small Latin consonants (private
                                               -- shorthand); not units after a number
    symbol_share                      DOUBLE,  -- [shape] share of visible characters that are
                                               -- symbols of logic, arrows, shapes and the like, but
                                               -- not +-=<>±×÷≈≠≤≥→⇒∴√∞°
    markup_count                      INTEGER, -- [shape] HTML tags and entities, and tokens of
                                               -- tokenizers and chat templates, outside code; the
                                               -- tags of a form count too, simple formatting (sup,
                                               -- sub, b, br) does not (debris of web pages)
    leaked_tokens                     INTEGER, -- [shape] special tokens of tokenizers and chat
                                               -- templates outside code: <|im_end|>, </s>, [PAD],
                                               -- ##ing
    loose_marks                       INTEGER, -- [shape] stops and commas of the CoT, outside code,
                                               -- between spaces, and pairs of marks, also
                                               -- full-width ones, that no writer puts together
                                               -- (cut-up text)
    longest_run                       INTEGER, -- [shape] characters of the longest run of 120 or
                                               -- more ASCII letters, digits and +/=_ without a
                                               -- break, or of 200 or more characters without a
                                               -- space, outside code; 0 if none
    clashing_word_share               DOUBLE,  -- [shape] pairs of function words that no grammar
                                               -- allows ("the of", "we the", "dem ist", "的因为"), and
                                               -- articles and conjunctions that end a sentence, per
                                               -- word of prose: word salad
    misplaced_marks                   INTEGER, -- [shape] sentences that begin with a small letter,
                                               -- paired with sentence openers ("The", "So") after a
                                               -- small letter: shuffled text
    filler_share                      DOUBLE,  -- [shape] phrases without content ("wait", "hmm",
                                               -- "let me see") per word of the CoT
    number_pairs                      INTEGER, -- [shape] numbers outside code that follow a number
                                               -- with only a space between (number dumps)
    mean_word_length                  DOUBLE,  -- [shape] letters per word, in prose of alphabetic
                                               -- scripts
    duplicate_line_share              DOUBLE,  -- [repetition] share of lines that occurred before
                                               -- (Gopher, Rae et al. 2021, table A1)
    duplicate_line_character_share    DOUBLE,  -- [repetition] share of characters in such lines
                                               -- (Gopher)
    duplicate_paragraph_share         DOUBLE,  -- [repetition] share of paragraphs that occurred
                                               -- before (Gopher)
    duplicate_paragraph_character_share DOUBLE, -- [repetition] share of characters in such
                                                -- paragraphs (Gopher)
    top_2_gram_share                  DOUBLE,  -- [repetition] share of characters in the most
                                               -- frequent word 2-gram (Gopher); a Han or kana
                                               -- character is a word
    top_3_gram_share                  DOUBLE,  -- [repetition] the same for 3-grams
    top_4_gram_share                  DOUBLE,  -- [repetition] the same for 4-grams
    duplicate_5_gram_share            DOUBLE,  -- [repetition] share of characters in word 5-grams
                                               -- that occurred before (Gopher)
    duplicate_6_gram_share            DOUBLE,  -- [repetition] the same for 6-grams
    duplicate_7_gram_share            DOUBLE,  -- [repetition] the same for 7-grams
    duplicate_8_gram_share            DOUBLE,  -- [repetition] the same for 8-grams
    duplicate_9_gram_share            DOUBLE,  -- [repetition] the same for 9-grams
    duplicate_10_gram_share           DOUBLE,  -- [repetition] the same for 10-grams
    repeated_item_share               DOUBLE,  -- [repetition] share of list items that repeat an
                                               -- earlier one, numbers and bullets aside; 0 for
                                               -- fewer than six items
    compression                       DOUBLE,  -- [repetition] bytes of the text per byte after
                                               -- deflate level 1; about 2 for prose, 0 for an empty
                                               -- text
    compression_tail                  DOUBLE,  -- [repetition] the same for the last 1,000
                                               -- characters
    loop_characters                   INTEGER, -- [repetition] visible characters of the longest
                                               -- stretch that repeats one unit at least three
                                               -- times, the numbers of a list aside
    loop_share                        DOUBLE,  -- [repetition] share of the visible characters in
                                               -- that stretch
    loop_repeats                      DOUBLE,  -- [repetition] number of repeats of the unit in that
                                               -- stretch
    question_language                 VARCHAR, -- [language] ISO 639-1 code of the language most of
                                               -- the question's words are in; null if it has none
    target_language_share             DOUBLE,  -- [language] share of the CoT's words in the target
                                               -- language (problems.target_language, else
                                               -- question_language); 1 without words, null without
                                               -- a target
    dominant_language                 VARCHAR, -- [language] ISO 639-1 code of the language most of
                                               -- the CoT's words are in; null without words
    dominant_language_share           DOUBLE,  -- [language] its share of the words; 1 without words
    language_words                    DOUBLE,  -- [language] words of the CoT that have a language:
                                               -- alphabetic words of two or more letters, 0.65 per
                                               -- Han character, 0.55 per character of Japanese
    language_switches                 INTEGER, -- [language] changes of language from one stretch to
                                               -- the next; single terms do not count
    foreign_clauses                   INTEGER, -- [language] clauses outside quotation marks and
                                               -- brackets in another language than most of them
                                               -- (mixing mid-sentence)
    unproven_share                    DOUBLE,  -- [language] of the words in Latin clauses of five
                                               -- or more, the share in clauses without one frequent
                                               -- word of their language, titles aside (salad,
                                               -- misspelt text)
    frequent_word_share               DOUBLE,  -- [language] share of the Latin words that are
                                               -- frequent words (articles, pronouns, prepositions
                                               -- ...) of a Latin language; 1 without Latin words.
                                               -- Running text has a third, token soup a tenth
    unknown_word_share                DOUBLE,  -- [language] share of the Latin and Cyrillic words of
                                               -- three or more small letters that are in no word
                                               -- list of the supported languages (pseudo-words)
    known_pair_share                  DOUBLE,  -- [language] share of neighbours that text puts
                                               -- together: words, the second in small letters, that
                                               -- are a frequent pair of English, and Chinese or
                                               -- Japanese characters that a word holds; 1 without
                                               -- pairs
    stray_fragments                   INTEGER, -- [language] stretches of another script inside a
                                               -- clause, outside quotation marks and brackets, in a
                                               -- script that the question does not use (the glitch
                                               -- of "so the 面积 is 12")
    share_en                          DOUBLE,  -- [language] share of the words in English
    share_zh                          DOUBLE,  -- [language] in Chinese
    share_es                          DOUBLE,  -- [language] in Spanish
    share_fr                          DOUBLE,  -- [language] in French
    share_de                          DOUBLE,  -- [language] in German
    share_ru                          DOUBLE,  -- [language] in Russian (any Cyrillic)
    share_ja                          DOUBLE,  -- [language] in Japanese
    share_ko                          DOUBLE,  -- [language] in Korean
    share_ar                          DOUBLE,  -- [language] in Arabic (any Arabic script)
    share_it                          DOUBLE,  -- [language] in Italian
    share_pt                          DOUBLE,  -- [language] in Portuguese
    share_nl                          DOUBLE,  -- [language] in Dutch
    share_sv                          DOUBLE,  -- [language] in Swedish
    share_tr                          DOUBLE,  -- [language] in Turkish
    share_vi                          DOUBLE,  -- [language] in Vietnamese
    share_hi                          DOUBLE,  -- [language] in Hindi (any Devanagari)
    share_other                       DOUBLE,  -- [language] in other scripts
    reflection_count                  INTEGER, -- [behaviour] phrases of doubt and pause in the CoT,
                                               -- English and Chinese ("wait", "let me rethink",
                                               -- "等等")
    verification_count                INTEGER, -- [behaviour] phrases of checking ("let me verify",
                                               -- "plug back in", "验算")
    backtrack_count                   INTEGER, -- [behaviour] phrases of going back ("try another
                                               -- approach", "换一种方法")
    reflective_words                  INTEGER, -- [behaviour] wait, mistake, however, but, retry,
                                               -- error, verify, wrong, evaluate, check: the words
                                               -- the DeepSeek-R1 paper counts
    step_count                        INTEGER, -- [behaviour] sentences or lines of the CoT that
                                               -- hold a letter or an equals sign
    step_markers                      INTEGER, -- [behaviour] list numbers and bullets, "Step 2",
                                               -- "first", "next", "首先", "第二步"
    equation_count                    INTEGER  -- [behaviour] equals signs in the CoT
);
