package dev.edgekd.text

internal class BertNormalizer(
    private val cleanText: Boolean,
    private val handleChineseChars: Boolean,
    private val stripAccents: Boolean,  // the file's null means: as lowercase
    private val lowercase: Boolean,
) : Normalizer {
    override fun invoke(text: AlignedText): AlignedText {
        var result = text
        if (cleanText) {
            result = result.keep { !Unicode.has(it, UnicodeTables.CLEANED) }
            result = result.map { if (Unicode.has(it, UnicodeTables.BLANK)) ' '.code else it }
        }
        if (handleChineseChars) {
            result = result.expand {
                if (Unicode.has(it, UnicodeTables.CHINESE)) intArrayOf(' '.code, it, ' '.code) else intArrayOf(it)
            }
        }
        if (stripAccents) result = decomposed(result).keep { !Unicode.has(it, UnicodeTables.MARK) }
        if (lowercase) result = result.expand(Unicode::lowercase)
        return result
    }
}

private class Part(val c: Int, val inserted: Boolean) {
    val order = Unicode.combiningClass(c)
}

private fun decomposed(text: AlignedText): AlignedText {
    val parts = ArrayList<Part>(text.size)
    for (c in text.text) Unicode.decomposed(c).forEachIndexed { i, part -> parts.add(Part(part, i > 0)) }
    putInOrder(parts)
    return text.replace(
        IntArray(parts.size) { parts[it].c },
        BooleanArray(parts.size) { parts[it].inserted },
    )
}

/** Marks after a letter stand in the order of their classes, those of one class as they came. */
private fun putInOrder(parts: MutableList<Part>) {
    var start = 0
    while (start < parts.size) {
        var end = start
        while (end < parts.size && parts[end].order != 0) end++
        if (end - start > 1) parts.subList(start, end).sortBy { it.order }
        start = end + 1
    }
}

/** Splits at blanks and around punctuation. */
internal fun splitBert(text: AlignedText): List<AlignedText> {
    val parts = ArrayList<AlignedText>()
    var start = 0  // of the word under way
    for (i in 0 until text.size) {
        val punctuation = Unicode.has(text.text[i], UnicodeTables.PUNCTUATION)
        if (!punctuation && !Unicode.has(text.text[i], UnicodeTables.SPACE)) continue
        if (start < i) parts.add(text.slice(start, i))
        if (punctuation) parts.add(text.slice(i, i + 1))
        start = i + 1
    }
    if (start < text.size) parts.add(text.slice(start, text.size))
    return parts
}

internal class WordPiece(
    private val vocabulary: Map<String, Int>,
    private val unknown: String,
    private val prefix: String,
    private val longestWord: Int,
) : Model {
    private val unknownId =
        vocabulary[unknown] ?: throw TokenizerError("unk_token is not in the vocabulary: $unknown")
    private val longestToken = vocabulary.keys.maxOf { it.codePointCount(0, it.length) }
    private val ahead = prefix.codePointCount(0, prefix.length)

    override fun idOf(token: String) = vocabulary[token]

    override fun tokenize(word: Word, tokens: MutableList<Token>) {
        val before = tokens.size
        var start = 0
        var known = word.size <= longestWord
        while (known && start < word.size) {
            val token = longestAt(word, start)
            known = token != null
            if (token != null) {
                tokens.add(token)
                start = token.end
            }
        }
        if (known) return
        tokens.subList(before, tokens.size).clear()  // one unknown piece makes the whole word unknown
        tokens.add(Token(unknownId, unknown, 0, word.size))
    }

    /** The longest token of the vocabulary that the word goes on with at `start`. */
    private fun longestAt(word: Word, start: Int): Token? {
        val most = longestToken - if (start == 0) 0 else ahead
        for (end in minOf(word.size, start + most) downTo start + 1) {
            val piece = if (start == 0) word.part(0, end) else prefix + word.part(start, end)
            val id = vocabulary[piece] ?: continue
            return Token(id, piece, start, end)
        }
        return null
    }
}
