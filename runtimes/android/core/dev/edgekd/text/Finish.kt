package dev.edgekd.text

// After the model: cutting to a length, and the special tokens around a text or a pair.

internal enum class Truncation { LONGEST_FIRST, ONLY_FIRST, ONLY_SECOND }

/** Cuts ends off so that both together have at most `most` tokens; `second` may be null. */
internal fun truncate(first: MutableList<Token>, second: MutableList<Token>?, most: Int, truncation: Truncation) {
    val total = first.size + (second?.size ?: 0)
    when {
        total <= most -> return
        most == 0 -> {
            first.clear()
            second?.clear()
        }
        truncation == Truncation.ONLY_SECOND ->
            cutOne(second ?: throw TokenizerError("there is no second text to be truncated"), total - most)
        truncation == Truncation.ONLY_FIRST -> cutOne(first, total - most)
        second == null -> cut(first, most)
        else -> cutLongest(first, second, most)
    }
}

private fun cut(tokens: MutableList<Token>, length: Int) {
    if (tokens.size > length) tokens.subList(length, tokens.size).clear()
}

private fun cutOne(tokens: MutableList<Token>, surplus: Int) {
    if (tokens.size <= surplus) throw TokenizerError("the text to be truncated is too short to make the pair fit")
    cut(tokens, tokens.size - surplus)
}

/** The lengths that longest-first leaves: the shorter text is cut only where half of the room is too little for it. */
private fun cutLongest(first: MutableList<Token>, second: MutableList<Token>, most: Int) {
    val swapped = first.size > second.size
    var shorter = minOf(first.size, second.size)
    var longer = if (shorter > most) shorter else maxOf(shorter, most - shorter)
    if (shorter + longer > most) {
        shorter = most / 2
        longer = shorter + most % 2
    }
    cut(first, if (swapped) longer else shorter)
    cut(second, if (swapped) shorter else longer)
}

/** A place of a template: the tokens of a text (0 or 1), or special tokens. */
internal class Slot(val text: Int?, val ids: IntArray, val type: Int)

/** Takes the blanks out of the offsets, as ByteLevel and RoBERTa do with `trim_offsets`. */
internal class Trimming(private val addPrefixSpace: Boolean) {
    fun trim(tokens: MutableList<Token>) {
        for (i in tokens.indices) {
            val text = codePointsOf(tokens[i].text)
            var start = tokens[i].start
            var end = tokens[i].end
            var before = text.indexOfFirst { !isGap(it) }.let { if (it < 0) text.size else it }
            val after = text.size - 1 - text.indexOfLast { !isGap(it) }
            if (before > 0) {
                // A single space that starts a text is the one that was put before it: it has no place in the original.
                if (addPrefixSpace && before == 1 && (i == 0 || start == 0)) before = 0
                start = minOf(start + before, end)
            }
            if (after > 0 && end >= after) end = maxOf(end - after, start)
            tokens[i] = tokens[i].at(start, end)
        }
    }

    /** A blank; U+0120 is a space as ByteLevel writes it. */
    private fun isGap(c: Int) = c == 0x120 || Unicode.has(c, UnicodeTables.SPACE)
}

internal class PostProcessor(
    var trimming: Trimming? = null,
    var single: List<Slot> = listOf(Slot(0, IntArray(0), 0)),
    var pair: List<Slot> = listOf(Slot(0, IntArray(0), 0), Slot(1, IntArray(0), 1)),
)
