package dev.edgekd

import dev.edgekd.text.AlignedText
import dev.edgekd.text.Encoding
import dev.edgekd.text.Places
import dev.edgekd.text.splitBert

/** A word's place in its text. */
internal class Word(val start: Int, val end: Int)

/** Split at white space and at punctuation, each mark a word, as BERT does. */
internal fun wordsOf(text: String): List<Word> {
    val aligned = AlignedText.of(text)
    val places = Places(aligned.text)
    return splitBert(aligned).map { Word(places[it.startOf(0)], places[it.endOf(it.size - 1)]) }
}

/** The tokens, first to last, that overlap each word; null where none does. Both are in the order of the text. */
internal fun tokensOf(encoding: Encoding, words: List<Word>, sequence: Int = 0): List<IntRange?> {
    val tokens = encoding.ids.indices.filter {
        encoding.sequences[it] == sequence && encoding.ends[it] > encoding.starts[it]
    }
    var at = 0
    return words.map { word ->
        while (at < tokens.size && encoding.ends[tokens[at]] <= word.start) at++
        var stop = at
        while (stop < tokens.size && encoding.starts[tokens[stop]] < word.end) stop++
        if (stop > at) tokens[at]..tokens[stop - 1] else null
    }
}
