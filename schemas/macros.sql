-- Columns derived from signals by thresholds, which rules name like any other column. A new macro
-- goes here and nowhere else: its parameters have the names of the signal columns that it reads.
-- The DeepSeek-R1 report publishes no numeric thresholds: these are ours, calibrated on the
-- labelled traces of tests/signals/data. A signal that was not measured (null) does not
-- decide, in either direction.

-- Does the CoT mix languages? A CoT that is entirely in a wrong language is not mixed; see
-- target_language_share.
CREATE OR REPLACE MACRO mixed_language(dominant_language_share, language_words) AS (
    -- three words, with a margin for the estimate of Chinese words: a name or a loan word is not a
    -- change of language, a clause is
    (1 - coalesce(dominant_language_share, 1)) * coalesce(language_words, 0) >= 2.5
    -- one word in twenty: below that are the errors of the detector on long texts
    AND coalesce(dominant_language_share, 1) <= 0.95
);

-- Does another script break into a clause? The DeepSeek-R1 report names this glitch of R1-Zero,
-- which one word in twenty (mixed_language) does not see. Quotations, brackets and terms do not
-- count.
CREATE OR REPLACE MACRO stray_script(stray_fragments) AS (coalesce(stray_fragments, 0) >= 1);

-- Can a person read it? Each clause names one way of being unreadable. Thresholds on shares apply
-- only to texts long enough for a share to mean something, so that "3 + 4 = 7. 7 + 5 = 12." passes.
CREATE OR REPLACE MACRO readable(
    characters, words, longest_line, code_share, unbalanced_latex, unbalanced_brackets,
    broken_share, strange_share, odd_word_share, vowelless_share, longest_run,
    clashing_word_share, duplicate_line_share, duplicate_line_character_share,
    duplicate_10_gram_share, compression, compression_tail, loop_characters, loop_share,
    loop_repeats, abbreviated_share, symbol_share, markup_count, loose_marks, mean_word_length,
    language_words, language_switches, foreign_clauses, unproven_share, target_language_share,
    dominant_language, dominant_language_share, filler_share, number_pairs, unsupported_share,
    leaked_tokens, function_word_lines, indentations, lines, frequent_word_share,
    misplaced_marks, repeated_item_share, unknown_word_share, known_pair_share
) AS (
    characters > 0  -- null if nothing was measured
    -- a unit repeated four times in a row over 60 characters is a loop; "1 + 1 + 1 + 1" is shorter
    AND NOT (coalesce(loop_repeats, 0) >= 4 AND coalesce(loop_characters, 0) >= 60
             AND coalesce(loop_share, 0) >= 0.15)
    -- so is a long unit repeated three times
    AND NOT (coalesce(loop_repeats, 0) >= 3 AND coalesce(loop_characters, 0) >= 200
             AND coalesce(loop_share, 0) >= 0.25)
    -- half of a text repeats earlier text word for word; 35 words are 200 characters of English and
    -- 50 of Chinese
    AND NOT ((coalesce(characters, 0) >= 200 OR coalesce(words, 0) >= 35)
              AND coalesce(duplicate_10_gram_share, 0) > 0.5)
    -- and so do its lines; programs repeat lines, too
    AND NOT (coalesce(duplicate_line_share, 0) > 0.4
             AND coalesce(duplicate_line_character_share, 0) > 0.4
             AND coalesce(characters, 0) >= 120 AND coalesce(code_share, 0) <= 0.5)
    -- a list that goes round in circles; its numbers hide it from the clauses above
    AND coalesce(repeated_item_share, 0) <= 0.5
    -- prose deflates by about 2, tables of sums by 3 to 4; the tail reveals a loop at the end
    AND NOT (coalesce(characters, 0) >= 300
             AND (coalesce(compression, 0) > 5 OR coalesce(compression_tail, 0) > 7))
    -- a replacement or control character in a hundred
    AND coalesce(broken_share, 0) <= 0.01
    -- scripts and dingbats that no supported language uses
    AND coalesce(strange_share, 0) <= 0.05
    -- token soup and random keys; below ten words one odd name would decide. CoTs about code have
    -- up to a quarter of camelCase names, soup has more
    AND NOT (coalesce(words, 0) >= 10 AND coalesce(odd_word_share, 0) > 0.25)
    AND NOT (coalesce(words, 0) >= 10 AND coalesce(vowelless_share, 0) > 0.15)
    -- no word, name or number that a person reads is this long: 100! has 158 digits
    AND coalesce(longest_run, 0) <= 200
    -- words out of order; at least two, since one is a slip
    AND NOT (coalesce(words, 0) * coalesce(clashing_word_share, 0)
                 + coalesce(misplaced_marks, 0) >= 1.9
             AND coalesce(clashing_word_share, 0) * words
                 + coalesce(misplaced_marks, 0) > 0.015 * words)
    -- another language every few words; a discussion of foreign sentences changes every ten words
    AND NOT (coalesce(language_words, 0) >= 20
             AND coalesce(language_switches, 0) > 0.15 * coalesce(language_words, 0))
    -- clauses of another language, one in some thirty words; a discussion of foreign sentences
    -- quotes them
    AND NOT (coalesce(foreign_clauses, 0) >= 3
             AND foreign_clauses > 0.03 * least(coalesce(language_words, 0), 400)
             AND coalesce(dominant_language_share, 1) <= 0.95)
    -- in another language than the question; quotations and terms are less than half
    AND NOT (coalesce(language_words, 0) >= 20 AND coalesce(target_language_share, 1) < 0.5)
    -- clauses without a common word: misspelt text, or words in no order. Terse mathematics stays
    -- below a fifth
    AND NOT (coalesce(language_words, 0) >= 50 AND coalesce(unproven_share, 0) > 0.3
             AND coalesce(dominant_language, 'en')
                 NOT IN ('zh', 'ja', 'ko', 'ru', 'ar', 'hi', 'other'))
    -- running text with few function words: token soup made of real words. Lists and tables have
    -- short lines
    AND NOT ((coalesce(language_words, 0) >= 30 AND coalesce(frequent_word_share, 1) < 0.2
              OR coalesce(language_words, 0) >= 12 AND coalesce(frequent_word_share, 1) < 0.05)
             AND coalesce(words, 0) >= 8 * coalesce(lines, 1)
             AND coalesce(dominant_language, 'en')
                 NOT IN ('zh', 'ja', 'ko', 'ru', 'ar', 'hi', 'other'))
    -- words that no list has: misspelt text and pseudo-words. Prose has hardly one in fifteen, names
    -- and code aside; in English the pairs of words must be rare, too
    AND NOT (coalesce(language_words, 0) >= 12 AND coalesce(unknown_word_share, 0) > 0.25
             AND coalesce(dominant_language, 'en')
                 NOT IN ('en', 'zh', 'ja', 'ko', 'ar', 'hi', 'other'))
    AND NOT (coalesce(language_words, 0) >= 12 AND coalesce(unknown_word_share, 0) > 0.12
             AND coalesce(known_pair_share, 1) < 0.35 AND coalesce(dominant_language, 'en') = 'en')
    AND NOT (coalesce(language_words, 0) >= 30 AND coalesce(unknown_word_share, 0) > 0.04
             AND coalesce(known_pair_share, 1) < 0.35 AND coalesce(dominant_language, 'en') = 'en')
    -- Chinese characters that no word puts together; prose has three known pairs in five
    AND NOT (coalesce(language_words, 0) >= 20 AND coalesce(known_pair_share, 1) < 0.3
             AND coalesce(dominant_language, 'en') = 'zh')
    -- filler without a thought: every third word
    AND NOT (coalesce(words, 0) >= 40 AND coalesce(filler_share, 0) > 0.3)
    -- numbers without a word
    AND NOT (coalesce(number_pairs, 0) >= 30 AND coalesce(number_pairs, 0) > coalesce(words, 0))
    AND NOT (coalesce(number_pairs, 0) >= 15 AND coalesce(number_pairs, 0) > 3 * coalesce(words, 0))
    -- private shorthand; units and function names stay below a quarter
    AND NOT (coalesce(words, 0) >= 20 AND coalesce(abbreviated_share, 0) > 0.35)
    AND NOT (coalesce(words, 0) >= 10 AND coalesce(mean_word_length, 0) > 12
             AND coalesce(dominant_language, 'en') NOT IN ('zh', 'ja', 'other'))
    -- words run together; German and Russian prose has 5 to 7 letters per word
    AND NOT (coalesce(words, 0) >= 40 AND coalesce(mean_word_length, 0) > 8.5
             AND coalesce(dominant_language, 'en') NOT IN ('zh', 'ja', 'other'))
    -- walls of symbols, debris of web pages, text cut up by stray commas and stops
    AND NOT (coalesce(characters, 0) >= 60 AND coalesce(symbol_share, 0) > 0.3)
    AND NOT (coalesce(markup_count, 0) >= 8
             AND coalesce(markup_count, 0) > 0.2 * coalesce(words, 0))
    AND NOT (coalesce(loose_marks, 0) >= 5 AND coalesce(loose_marks, 0) > 0.04 * coalesce(words, 0))
    -- a wall of text without one line break
    AND coalesce(longest_line, 0) <= 4000
    -- one word per line, and lines indented at random: prose indents by one or two steps, code by
    -- four
    AND NOT (coalesce(function_word_lines, 0) >= 3
             AND function_word_lines > 0.05 * coalesce(lines, 0))
    AND NOT (coalesce(indentations, 0) >= 5 AND indentations > 0.3 * coalesce(lines, 0))
    -- tokens of a chat template in running text; one or two at the end are a missed stop
    AND NOT (coalesce(leaked_tokens, 0) >= 3 AND leaked_tokens > 0.02 * coalesce(words, 0))
    -- LaTeX that no renderer accepts
    AND coalesce(unbalanced_latex, 0) <= 3
    AND coalesce(unbalanced_brackets, 0) <= 8
    -- not measured (null) if a third is in a script that the signals do not support
    AND (coalesce(unsupported_share, 0) <= 0.3 OR NULL)
);

-- Rank for rejection sampling, between 0 and 1: form, language, and the absence of repetition and
-- clutter. Correctness is not part of it; a rule decides that. A config can rank by any other SQL
-- expression.
CREATE OR REPLACE MACRO quality(
    well_formed, has_summary, truncated, target_language_share, dominant_language_share,
    duplicate_5_gram_share, loop_share, odd_word_share, strange_share, broken_share,
    unbalanced_latex, unbalanced_brackets
) AS (
    0.25 * coalesce(well_formed::INT, 0)
    + 0.10 * coalesce(has_summary::INT, 0)
    + 0.10 * (1 - coalesce(truncated::INT, 0))
    -- squared: a tenth of the words in a wrong language costs a fifth of this term
    + 0.25 * coalesce(target_language_share, dominant_language_share, 1) ** 2
    + 0.20 * (1 - least(1, greatest(coalesce(duplicate_5_gram_share, 0), coalesce(loop_share, 0))))
    + 0.10 * (1 - least(1, 5 * (
        coalesce(odd_word_share, 0) + coalesce(strange_share, 0) + coalesce(broken_share, 0)
        + 0.02 * (coalesce(unbalanced_latex, 0) + coalesce(unbalanced_brackets, 0)))))
);
